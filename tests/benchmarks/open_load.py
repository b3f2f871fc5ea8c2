"""Load with open-loop arrivals: calls come when they are due, whatever the server makes of those before them.

::

    due times (Poisson) ──► each moment's calls, in one write to the next connection ──► server
    latency = reply read minus due                            replies ──► by stream: good, shed, failed

What is late here would be taken for slowness of the server, so it is measured: how late calls are sent, and the share
of a core that this process takes. The bytes are those of ``raw_load``.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from tests.benchmarks.raw_load import (
    ACK,
    DATA,
    DATA_AT,
    END_STREAM,
    FIRST_WINDOW,
    GOAWAY,
    HEAD,
    HEADERS,
    MAX_STREAMS,
    OUR_WINDOW,
    PATIENCE_S,
    PING,
    PREFACE,
    READ_BYTES,
    RESET,
    SETTINGS,
    WINDOW,
    HeaderTable,
    Requests,
    connected,
    frame,
)
from tests.benchmarks.setting import CUSTOMERS

MOMENT_S: Final = 0.0002
"""Calls that are due within so long go out together, as a client's calls do that were made in one turn of its loop."""
CONNECTIONS: Final = 8
SHED: Final = b"grpc-status\x018"
"""In the headers of a call that the lean front sheds: it uses no table and no code for them."""
FRAME_HEAD: Final = struct.Struct(">HBBBI")
MOST_STREAMS: Final = 100
"""Until the server has said how many calls it takes at once on a connection."""


Call = tuple[float, float]
"""When it was due, and the seconds from then to its reply."""


@dataclass(frozen=True)
class Seen:
    """What came of a slice of load: calls by outcome, good ones a second, latencies of the good and the shed ones.

    ``goodput`` is over the time in which calls were due and sent, ``answered`` over that until the last reply.
    ``late_ms``: how late calls were sent, 99 % of them at most; ``cpu``: the share of a core that the load took.
    """

    offered: int
    good: int
    shed: int
    failed: int
    goodput: float
    answered: float
    p50_ms: float
    p99_ms: float
    shed_p99_ms: float
    late_ms: float
    cpu: float


class Line:
    """A connection, and when the calls on it were due."""

    def __init__(self, port: int, requests: Requests) -> None:
        self.socket: Final = connected(port)
        self.due: Final[dict[int, float]] = {}
        self.leaving = self.closed = False
        self.most = MOST_STREAMS
        self._requests: Final = requests
        self._stream = 1
        self._room, self._eaten = FIRST_WINDOW, 0
        self._rest = b""
        self._table: Final = HeaderTable()
        self._other: Final[list[Call]] = []

    @property
    def room(self) -> int:
        """How many calls may be sent now."""
        return 0 if self.leaving else min(self.most - len(self.due), self._room // self._requests.message_bytes)

    def send(self, due: list[float]) -> None:
        """Send calls that were due then."""
        group: bytes | memoryview = self._requests.group(self._stream, len(due))
        if self._stream == 1:
            group = b"".join([PREFACE, self._requests.first_headers, group[DATA_AT:]])
        self.due.update(zip(range(self._stream, self._stream + 2 * len(due), 2), due, strict=True))
        self._stream += 2 * len(due)
        self._room -= self._requests.message_bytes * len(due)
        self._say(group)

    def read(self, good: list[Call], shed: list[Call]) -> int:
        """Take in replies: adds good calls and those that were shed, returns how many failed otherwise."""
        try:
            new = self.socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            new = b""
        now, data, at, failed = time.perf_counter(), self._rest + new, 0, 0
        self.closed = not new
        whole = len(data) - HEAD
        while at <= whole:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, at)
            stop = at + HEAD + (high << 8 | low)
            if stop > len(data):
                break
            if kind == HEADERS:
                ok = self._table.ok(block := data[at + HEAD : stop])
                if flags & END_STREAM and (due := self.due.pop(stream, None)) is not None:
                    (good if ok else shed if SHED in block else self._other).append((due, now - due))
            elif kind == DATA:
                self._eaten += stop - at - HEAD
            elif kind == RESET:
                failed += self.due.pop(stream, None) is not None
            else:
                failed += self._control(kind, flags, stream, data[at + HEAD : stop])
            at = stop
        failed += len(self._other)
        self._other.clear()
        self._rest = data[at:]
        if self._eaten >= OUR_WINDOW // 2:
            self._say(frame(WINDOW, 0, 0, struct.pack(">I", self._eaten)))
            self._eaten = 0
        return failed

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> int:
        """What is not a reply; returns how many calls it lost."""
        if kind == SETTINGS and not flags & ACK:
            self.most = dict(struct.iter_unpack(">HI", payload)).get(MAX_STREAMS, sys.maxsize)
            self._say(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._say(frame(PING, ACK, 0, payload))
        elif kind == WINDOW and stream == 0:
            self._room += int.from_bytes(payload)
        elif kind == GOAWAY:
            self.leaving = True
            last, code = struct.unpack_from(">II", payload)
            if code:
                raise RuntimeError(f"the server ends a connection with error {code}: {payload[8:]!r}")
            lost = [number for number in self.due if number > last]
            for number in lost:
                del self.due[number]
            return len(lost)
        return 0

    def _say(self, data: bytes | memoryview) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True


class Load:
    """Lines to a server, kept from slice to slice."""

    def __init__(self, port: int, connections: int = CONNECTIONS, customers: int = CUSTOMERS) -> None:
        self._port, self._requests = port, Requests(port, customers)
        self._lines = [Line(port, self._requests) for _ in range(connections)]
        self._old: list[Line] = []
        self._rng = np.random.default_rng(os.getpid())

    def run(self, rate: float, seconds: float, settle_s: float = 0.0) -> Seen:
        """Offer ``rate`` calls a second for so long, then wait for what is still on its way.

        Only those that were due in the last ``seconds`` count, before them as many a second for ``settle_s``.
        """
        calls = int(rate * (settle_s + seconds))
        due: list[float] = np.cumsum(self._rng.exponential(1 / rate, calls)).tolist()
        good: list[Call] = []
        shed: list[Call] = []
        late: list[Call] = []
        sent = failed = turn = 0
        cpu, start = time.thread_time(), time.perf_counter()
        due = [start + at for at in due]
        while sent < len(due):
            now, stop = time.perf_counter(), sent
            while stop < len(due) and due[stop] <= now:
                stop += 1
            for _ in range(len(self._lines)):
                if sent == stop:
                    break
                turn = (turn + 1) % len(self._lines)
                if (count := min(stop - sent, self._lines[turn].room)) > 0:
                    self._lines[turn].send(due[sent : sent + count])
                    late.append((due[sent], now - due[sent]))
                    sent += count
            failed += self._read(good, shed)
            time.sleep(MOMENT_S)
        end = time.perf_counter()
        while any(line.due for line in (*self._lines, *self._old)) and time.perf_counter() < end + PATIENCE_S:
            failed += self._read(good, shed)
            time.sleep(MOMENT_S)
        last = time.perf_counter()
        cpu = (time.thread_time() - cpu) / (end - start)
        failed += sum(len(line.due) for line in (*self._lines, *self._old))
        for line in (*self._lines, *self._old):
            line.due.clear()
        begun = start + settle_s
        counted, refused, lateness = (_settled(calls, begun) for calls in (good, shed, late))
        return Seen(
            offered=sum(at >= begun for at in due),
            good=len(counted),
            shed=len(refused),
            failed=failed,
            goodput=len(counted) / (end - begun),
            answered=len(counted) / (last - begun),
            p50_ms=_quantile_ms(counted, 0.5),
            p99_ms=_quantile_ms(counted, 0.99),
            shed_p99_ms=_quantile_ms(refused, 0.99),
            late_ms=_quantile_ms(lateness, 0.99),
            cpu=cpu,
        )

    def _read(self, good: list[Call], shed: list[Call]) -> int:
        failed = 0
        for at, line in enumerate(self._lines):
            failed += line.read(good, shed)
            if line.leaving or line.closed:
                self._old.append(line)
                self._lines[at] = Line(self._port, self._requests)
        for line in self._old[:]:
            failed += line.read(good, shed)
            if line.closed:
                failed += len(line.due)
                line.socket.close()
                self._old.remove(line)
        return failed


def _settled(calls: list[Call], begun: float) -> list[float]:
    """The seconds of those that were due by then."""
    return [seconds for due, seconds in calls if due >= begun]


def _quantile_ms(seconds: list[float], share: float) -> float:
    return 1e3 * float(np.quantile(seconds, share)) if seconds else 0.0


class Apart:
    """Load from a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, rate: float, seconds: float, settle_s: float = 0.0) -> Seen:
        """As :meth:`Load.run`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rate} {seconds} {settle_s}\n")
        self._process.stdin.flush()
        return Seen(**json.loads(self._process.stdout.readline()))


@contextmanager
def apart(port: int, connections: int = CONNECTIONS, customers: int = CUSTOMERS) -> Iterator[Apart]:
    """Start a process for the load."""
    command = [sys.executable, "-m", "tests.benchmarks.open_load", *map(str, (port, connections, customers))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Apart(process)
        finally:
            process.terminate()


def main() -> None:
    """For each line of stdin, a rate and seconds that count and that do not, one of JSON."""
    load = Load(*map(int, sys.argv[1:]))
    for line in sys.stdin:
        print(json.dumps(asdict(load.run(*map(float, line.split())))), flush=True)


if __name__ == "__main__":
    main()
