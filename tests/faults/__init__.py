"""Random histories of events, merges, erasures and consents under faults, checked against an independent model."""
