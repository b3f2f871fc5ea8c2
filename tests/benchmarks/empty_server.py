"""An empty unary call on grpcio's sync server with 4 threads, with the contract's messages: the unit of cost."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc


class Empty(scoring_pb2_grpc.ScoringServiceServicer):
    """Answers without doing anything."""

    def ScoreCustomer(self, request: Any, context: Any) -> scoring_pb2.ScoreCustomerResponse:  # noqa: N802, ARG002
        """An empty reply."""
        return scoring_pb2.ScoreCustomerResponse()


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(4))
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(Empty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(0)
