"""Online: customer states and profiles in Redis, read and written by the server."""
