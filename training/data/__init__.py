"""Training data: cut-offs, customer states and labels at each of them, and the splits in time."""
