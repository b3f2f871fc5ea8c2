"""Recorded events on disk: Parquet files that the log in Redis is moved to, and that training reads."""
