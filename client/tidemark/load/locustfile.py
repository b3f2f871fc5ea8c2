"""Users for Locust (``pip install locust``) that make the same calls. Nothing imports this file.

    locust -f locustfile.py --host 127.0.0.1:50051 --ids ids.txt --users 50 --headless --run-time 30s

Each user makes one call a second, but waits for the reply to the call before. That is a *closed* loop: while the server
is stuck all users wait, and the calls that they would have made are missing from the percentiles. For latencies under a
given load use ``python -m tidemark.load``.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, Final

import grpc.experimental.gevent
from locust import User, constant_throughput, events, task

from tidemark import CallFailedError, Problem, ScoringClient
from tidemark.load.ids import read_ids
from tidemark.load.plan import find_target

grpc.experimental.gevent.init_gevent()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the options of this file to those of Locust."""
    parser.add_argument("--ids", required=True, type=Path, help="File with customer ids, one a line.")
    parser.add_argument("--batch", type=int, default=0, help="Ids in each call; 0 for unary calls.")
    parser.add_argument(
        "--deadline-ms", type=float, default=1000.0, help="Deadline of each call, including its retries."
    )
    parser.add_argument("--allow-remote", action="store_true", help="Allow a server that is not on this machine.")


class Caller(User):
    """A user that asks for scores with the Python client and its retries, as services do."""

    wait_time = constant_throughput(1)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options: Any = self.environment.parsed_options
        target = find_target(self.host or "", allow_remote=options.allow_remote)
        self._ids: Final = read_ids(options.ids).ids
        self._batch: Final[int] = options.batch
        self._client: Final = ScoringClient(str(target), timeout_s=options.deadline_ms / 1e3)

    def on_stop(self) -> None:
        """Close the connection."""
        self._client.close()

    @task
    def score(self) -> None:
        """Make one call, and report it to Locust."""
        ids = random.choices(self._ids, k=max(1, self._batch))  # noqa: S311  # load, not a secret
        start, failure = time.perf_counter(), None
        try:
            if self._batch:
                problems = [result for result in self._client.score_many(ids) if isinstance(result, Problem)]
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
