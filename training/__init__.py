"""Offline training: from a source and a config to a bundle with its evidence."""
