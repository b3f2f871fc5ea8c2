"""Connections to Redis: addresses, Sentinel, Cluster, and the circuit breaker."""
