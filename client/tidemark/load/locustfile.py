"""For those who use Locust (``pip install locust``): the same calls, by its users. Nothing imports this file.

    locust -f locustfile.py --host 127.0.0.1:50051 --ids ids.txt --users 50 --headless --run-time 30s

Each user makes a call a second, if the one before has been answered by then. That is a *closed* loop: while the server
is stuck all users wait, and the calls that they would have made are in no percentile. For latencies under a given load
use ``python -m tidemark.load``.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, Final

import grpc.experimental.gevent
from locust import User, constant_throughput, events, task

from tidemark.load.ids import from_file
from tidemark.load.plan import find_target
from tidemark.scoring import CallFailedError, Problem, ScoringClient

grpc.experimental.gevent.init_gevent()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of our own, beside Locust's."""
    parser.add_argument("--ids", required=True, type=Path, help="File of the ids to ask for, one a line.")
    parser.add_argument("--batch", type=int, default=0, help="Ids a call; 0 for unary calls.")
    parser.add_argument("--deadline-ms", type=float, default=1000.0, help="Of each call, with its retries.")
    parser.add_argument("--allow-remote", action="store_true", help="Load a server that is not on this machine.")


class Caller(User):
    """A service that asks for scores, with the client and the retries that services use."""

    wait_time = constant_throughput(1)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options: Any = self.environment.parsed_options
        target = find_target(self.host or "", allow_remote=options.allow_remote)
        self._ids: Final = from_file(options.ids)
        self._batch: Final[int] = options.batch
        self._client: Final = ScoringClient(str(target), timeout_s=options.deadline_ms / 1e3)

    def on_stop(self) -> None:
        """Close the connection."""
        self._client.close()

    @task
    def score(self) -> None:
        """Make a call, and tell Locust what came of it."""
        ids = random.choices(self._ids, k=max(1, self._batch))  # noqa: S311  # no secret
        start, failure = time.perf_counter(), None
        try:
            if self._batch:
                problems = [one for one in self._client.score_many(ids) if isinstance(one, Problem)]
                failure = CallFailedError(problems[0]) if problems else None
            else:
                self._client.score(ids[0])
        except CallFailedError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name="BatchScoreCustomers" if self._batch else "ScoreCustomer",
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=len(ids),
            exception=failure,
        )
