"""The processes that send calls at their times and note how each ended."""
