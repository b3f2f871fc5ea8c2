"""Audit: checks a source or snapshot before anything is fitted, and lists findings with their fixes."""
