"""Loading: computes customer states from a source and writes them to Redis beside live events."""
