"""``tidemark healthcheck``: exit code 0 if the server on this machine is SERVING, for containers."""

from __future__ import annotations

import os
import sys
from typing import Final

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from feature_store.cli import run_cli

EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104  # replaced by the loopback address, not listened on
TIMEOUT_S: Final = 2.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def healthcheck() -> int:
    """Ask the server on this machine for its health, at TIDEMARK_HOST and TIDEMARK_PORT.

    Exit code 0 if it is SERVING, else 1. Works without TLS only.
    """
    host, port = os.environ.get("TIDEMARK_HOST", "127.0.0.1"), os.environ.get("TIDEMARK_PORT", "50051")
    if host in EVERY_ADDRESS:
        host = "127.0.0.1"
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"no answer: {error.code().name}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    run_cli(healthcheck, "tidemark healthcheck")
