"""Evaluation: what the models and the decisions are worth on later data."""
