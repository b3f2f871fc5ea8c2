"""The offline store: reads a shop's source with DuckDB and computes customer states as of any time."""
