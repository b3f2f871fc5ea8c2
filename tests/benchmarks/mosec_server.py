"""The job of ``ScoreCustomer`` on mosec (HTTP, a Rust front that batches, a Python worker), as lean as it can be.

The body of a request is the bare customer id, that of a reply the ``ScoreCustomerResponse``. The worker takes from
tidemark what can be taken, and leaves out what would cost: no economics, no check of the id, no health.
"""

# mosec may not be installed, and has no full types where it is.
# mypy: disable-error-code="import-not-found, misc, no-untyped-call"
from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import hiredis
import numpy as np
import redis
from mosec import Server, Worker

from feature_store.bundles import bundle
from service.api import score_wire as wire
from service.api.encoding import field
from service.scoring.model import Model
from service.scoring.types import Scores, rows_of

BATCH: Final = 64
WAIT_MS: Final = 3
"""What came out cheapest with 64 in flight, of batches of 8 to 128 and 1 to 10 ms."""


class Scorer(Worker):
    """A batch of ids → one MGET → one graph run → replies."""

    resp_mime_type = "application/x-protobuf"

    def __init__(self) -> None:
        super().__init__()
        model = Model(bundle.read(Path(sys.argv[1])))
        self._model = model
        self._economics = np.tile(model.economics, (BATCH, 1))
        self._prefix = f"tm:{model.layout.fingerprint}:".encode()
        self._version = field(6, model.version.encode())
        self._redis: Any = redis.ConnectionPool.from_url(sys.argv[2]).make_connection()

    def deserialize(self, data: bytes) -> bytes:
        """As it came."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """As it is."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Replies in the order of the ids."""
        keys = [self._prefix + name for name in data]
        self._redis.send_packed_command([hiredis.pack_command((b"MGET", *keys))], check_health=False)  # type: ignore[arg-type]
        states = self._model.layout.unpack(self._redis.read_response(disable_decoding=True))
        if not states.valid.all():
            raise ValueError("a customer is unknown")
        table = self._model.run(states, time.time(), self._economics[: len(data)])
        scores = Scores(rows_of(table), {}, self._model.version)
        return [wire.response(wire.score(name.decode(), scores, at, self._version)) for at, name in enumerate(data)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as result:
        return int(result.getsockname()[1])


if __name__ == "__main__":
    port = free_port()
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(port), "MOSEC_LOG_LEVEL": "warning"}
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")  # a little cheaper than one for each core
    server = Server()
    server.append_worker(Scorer, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    print(f"serving on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    server.run()
