"""Scaffold: ``training init`` proposes a config from a file or a query."""
