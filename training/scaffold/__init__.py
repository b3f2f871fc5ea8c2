"""Scaffold: ``training init`` generates a config from a file or a query."""
