"""A rolling restart under load: calls lost by clients with the documented retry policy, which are our own.

Scores, events and streams of events go on from several processes while all workers are replaced, several times; one
process comes on a new connection for each call. Lost is a call that failed, an answer about somebody else, and an
event that was acknowledged and not counted, or counted twice.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import click
import psutil

from tests.benchmarks.setting import CUSTOMERS, Bench, Measured, Server, customer_id, tidemark_server
from tidemark import CustomerClient, Event, EventClient, Recorded, Score, ScoringClient

WORKERS: Final = 2
ROLLS: Final = 3
PROCESSES: Final = 2
TIMEOUT_S: Final = 60.0
LIMIT_S: Final = 120.0
EACH: Final = 5
"""Events in a call, all of one customer."""
CALLS_EACH: Final = 20
"""Calls with events of one customer: well below what is folded of one in an hour."""
STREAMED: Final = 2500


class Load:
    """Calls until told to stop, and what came of them."""

    def __init__(self, target: str, number: int, ids: Sequence[str]) -> None:
        """``ids``: of customers who can be scored."""
        self._target = target
        self._ids = ids
        self._name = f"rolling-{number}-{time.time_ns()}"
        self.over = threading.Event()
        self.found: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()

    def run(self, *kinds: Callable[[], None]) -> None:
        """Until the other end of stdin closes."""
        threads = [threading.Thread(target=kind) for kind in kinds]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self.over.set()
        for thread in threads:
            thread.join()

    def score(self) -> None:
        """Score one customer after the other, and a hundred now and then."""
        with ScoringClient(self._target, timeout_s=TIMEOUT_S) as client:
            at = 0
            while not self.over.is_set():
                at += 1
                ids = [self._ids[(at * 61 + i) % len(self._ids)] for i in range(1 if at % 10 else 100)]
                self._try(partial(_scored, client, ids))

    def come(self) -> None:
        """Score on a new connection each time."""
        while not self.over.is_set():
            with ScoringClient(self._target, timeout_s=TIMEOUT_S) as client:
                self._try(partial(_scored, client, self._ids[:1]))

    def record(self) -> None:
        """Record events, a few each time."""
        with EventClient(self._target, timeout_s=TIMEOUT_S) as client:
            at = 0
            while not self.over.is_set():
                at += 1
                name = f"{self._name}-{at // CALLS_EACH}"
                events = [Event(name, "visit", channel="web") for _ in range(EACH)]
                self._sent[name] += EACH
                self._try(partial(_recorded, client.record, events))

    def stream(self) -> None:
        """Record events in streams of several messages."""
        with EventClient(self._target, timeout_s=TIMEOUT_S) as client:
            at = 0
            while not self.over.is_set():
                at += 1
                names = [f"{self._name}-stream-{at}-{i // 50}" for i in range(STREAMED)]
                self._sent.update(names)
                events = [Event(name, "visit", channel="web") for name in names]
                self._try(partial(_recorded, partial(client.stream, timeout_s=TIMEOUT_S), events))

    def check(self) -> None:
        """Count what was not counted once."""
        with CustomerClient(self._target, timeout_s=TIMEOUT_S) as client:
            for name, sent in self._sent.items():
                counted = sum(client.get(name).channels.values())
                self.found["events"] += sent
                if counted != sent:
                    self.found["events lost or counted twice"] += abs(counted - sent)

    def _try(self, call: Callable[[], bool]) -> None:
        self.found["calls"] += 1
        try:
            right = call()
        except Exception as error:  # whatever it is, the call is lost
            self.found[f"lost: {error}"] += 1
        else:
            self.found["wrong"] += not right


def _scored(client: ScoringClient, ids: Sequence[str]) -> bool:
    """Whether each is scored as itself."""
    if len(ids) == 1:
        return client.score(ids[0]).customer_id == ids[0]
    return [item.customer_id for item in client.score_many(ids) if isinstance(item, Score)] == ids


def _recorded(record: Callable[[Sequence[Event]], Recorded], events: Sequence[Event]) -> bool:
    """Whether all are recorded, now or at an earlier attempt."""
    done = record(events)
    return done.accepted + done.duplicates == len(events)


def rolling_lost(bench: Bench) -> Measured:
    """Calls lost while all workers are replaced, on the lean front; and in words on the other one."""
    result = {front: rolled(bench, front) for front in ("lean", "grpcio")}
    lost = {front: sum(count for what, count in item.items() if what not in KEPT) for front, item in result.items()}
    calls = ", ".join(f"{front}: {item['calls']:,} calls, {item['events']:,} events" for front, item in result.items())
    return float(sum(lost.values())), f"{ROLLS} restarts of {WORKERS} workers on each front; {calls}{_why(result)}"


KEPT: Final = ("calls", "events")


def _why(found: dict[str, Counter[str]]) -> str:
    lost = {f"{front} {what}": n for front, item in found.items() for what, n in item.items() if n and what not in KEPT}
    return f"; {lost}" if lost else ""


def rolled(bench: Bench, front: str) -> Counter[str]:
    """What came of calls while the workers were replaced."""
    options = ("--transport", front, "--workers", str(WORKERS))
    with tidemark_server(bench.registry, bench.url, *options) as server:
        command = [sys.executable, "-m", "tests.benchmarks.rolling", "--target", f"127.0.0.1:{server.port}", "--number"]
        clients = [
            subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for number in range(PROCESSES + 1)
        ]
        try:
            for _ in range(ROLLS):
                time.sleep(1)
                restart(server)
            time.sleep(1)
            return sum((Counter(json.loads(item.communicate(timeout=LIMIT_S)[0])) for item in clients), Counter())
        finally:
            for item in clients:
                item.kill()


def restart(server: Server) -> None:
    """Replace all workers, and return when the old ones are gone."""
    before = workers(server)
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + LIMIT_S
    while before & workers(server) or len(workers(server)) != WORKERS:
        if time.monotonic() > end:
            raise RuntimeError("the workers were not replaced")
        time.sleep(0.1)


def workers(server: Server) -> set[int]:
    """Process ids of the workers: multiprocessing has a process of its own beside them."""
    result = set()
    for process in server.process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in process.cmdline()):
                result.add(process.pid)
    return result


@click.command()
@click.option("--target", required=True)
@click.option("--number", required=True, type=int)
def main(target: str, number: int) -> None:
    """Call until stdin closes, and print what came of it, as JSON."""
    load = Load(target, number, [customer_id(i) for i in range(CUSTOMERS)])
    if number:
        load.run(load.score, load.score, load.record, load.stream)
        load.check()
    else:
        load.run(load.come)
    print(json.dumps(load.found))


if __name__ == "__main__":
    main()
