"""Connections to Redis: addresses, Sentinel, cluster, and the circuit breaker."""
