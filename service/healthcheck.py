"""``python -m service.healthcheck``: exit code 0 if the server on this machine is SERVING, for containers."""

from __future__ import annotations

import os
import sys
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104  # asked at, not listened on


def main() -> int:
    """Ask where TIDEMARK_HOST and TIDEMARK_PORT say."""
    host, port = os.environ.get("TIDEMARK_HOST", "127.0.0.1"), os.environ.get("TIDEMARK_PORT", "50051")
    if host in EVERY_ADDRESS:
        host = "127.0.0.1"
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError as error:
            print(f"no answer: {error.code().name}", file=sys.stderr)
            return 1
    serving = reply.status == health_pb2.HealthCheckResponse.SERVING
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if serving else 1


if __name__ == "__main__":
    sys.exit(main())
