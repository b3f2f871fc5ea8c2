"""gRPC transports: two servers with the same behaviour, and what both need."""
