"""The feature store: feature definitions, customer states and their online and offline computation, model bundles."""
