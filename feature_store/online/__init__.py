"""The online store: states and profiles in Redis, read for scoring and changed by events."""
