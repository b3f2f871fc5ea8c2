"""The archive of live events: Parquet files that the event log is moved to."""
