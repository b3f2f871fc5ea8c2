"""Bundles: the model graph with its manifest, and the registry folder that holds them."""
