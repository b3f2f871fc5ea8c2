"""Feature store: definitions, customer states, their offline (SQL) and online (Redis) computation, model bundles."""
