"""Loading: computes customer states from a source and writes them to Redis while live events come in."""
