"""The results of a load test for people and programs: terminal, JSON and HTML."""
