"""The transport on grpcio's asyncio server."""
