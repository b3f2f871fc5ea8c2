"""The lean transport: gRPC on a sans-I/O HTTP/2 parser and one event loop."""
