"""The load of ``raw_load`` over HTTP/1.1, for peers that speak no gRPC: ready-made requests, one in flight a line."""

from __future__ import annotations

import os
import random
import re
from functools import partial
from typing import Final

from tests.benchmarks.raw_load import RawLoad, connected, drive, received
from tests.benchmarks.setting import CUSTOMERS, customer_id

LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def run(port: int, path: str, *, in_flight: int, seconds: float) -> RawLoad:
    """Load ``127.0.0.1:port`` from this thread with POSTs of customer ids, on as many connections as are in flight."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(customer_id(0))}\r\n\r\n"
    drawn = random.Random(os.getpid()).choices(range(CUSTOMERS), k=1 << 14)
    requests = [(head + customer_id(number)).encode() for number in drawn]
    return drive([partial(Call, port, requests, at * 61) for at in range(in_flight)], seconds)


class Call:
    """A kept connection with one call on it; what is not a 200 has failed."""

    def __init__(self, port: int, requests: list[bytes], at: int) -> None:
        self.socket = connected(port)
        self.pending = self.calls = self.failed = 0
        self.open = True
        self._requests, self._at = requests, at
        self._rest = b""

    def send(self) -> None:
        """Send the next call, if the last one is back."""
        if not self.pending:
            self._at = (self._at + 1) % len(self._requests)
            self.pending = 1
            try:
                self.socket.sendall(self._requests[self._at])
            except OSError:
                self.open = False

    def read(self) -> None:
        """Take in the reply."""
        data = received(self.socket)
        if data is None:
            return
        self.open = bool(data)
        self._rest += data
        body = self._rest.find(b"\r\n\r\n") + 4
        if body >= 4 and (length := LENGTH.search(self._rest, 0, body)) and len(self._rest) >= body + int(length[1]):
            ok = self._rest.startswith(b"HTTP/1.1 200 ")
            self.calls += ok
            self.failed += not ok
            self.pending, self._rest = 0, b""

    def last(self) -> None:
        """Every reply wakes the reader anyway."""
