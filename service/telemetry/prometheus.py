"""Metrics over HTTP, for Prometheus. The only module that imports prometheus_client.

::

    scrape ─► thread ─► pipe ─► event loop of each worker ─► snapshot ─► pipe ─► one page, with a label for the worker

Several workers share one address: whichever answered by itself would tell its own share as if it were all. So the
process that starts them asks each. What they count is not added up here: a worker that is replaced begins at zero, and
Prometheus knows how to go on from there only as long as it sees one worker's counter.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_store.errors import InputError
from service.settings import Settings

if TYPE_CHECKING:  # the process that asks counts nothing, and needs neither numpy nor grpcio
    from service.telemetry.metrics import Snapshot

ASK: Final = b"?"
PATIENCE_S: Final = 2.0
"""For all workers together: a scrape shows those that have answered by then."""
WORKER: Final = "worker"
"""The label that says which of the workers, from 0."""


def answer(pipe: Connection, snapshot: Callable[[], Snapshot]) -> None:
    """Have the running event loop answer whoever asks at the other end of ``pipe``, until it is closed."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        try:
            pipe.recv_bytes()
            pipe.send_bytes(json.dumps(snapshot()).encode())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())

    loop.add_reader(pipe.fileno(), asked)


@contextmanager
def exposed(settings: Settings, pipes: Callable[[], Mapping[int, Connection]]) -> Iterator[None]:
    """Serve the metrics of the workers at the ends of these pipes, where a port is set; InputError where that is taken.

    ``pipes`` is asked at each scrape: workers come and go.
    """
    if not settings.metrics_port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(WorkerCollector(pipes))
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise InputError(f"cannot listen on {where} for metrics: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class WorkerCollector(Collector):
    """Asks all workers at each scrape."""

    def __init__(self, pipes: Callable[[], Mapping[int, Connection]]) -> None:
        self._pipes: Final = pipes
        self._asking: Final = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The families of all workers, each sample with the worker's number."""
        with self._asking:  # one scrape at a time, or answers would meet another's question
            found = _answers(self._pipes())
        told = GaugeMetricFamily("tidemark_workers", "Worker processes that answered this scrape.")
        told.add_metric([], len(found))
        yield told
        yield from families(found).values()


def _answers(pipes: Mapping[int, Connection]) -> dict[int, Snapshot]:
    asked = {number: pipe for number, pipe in pipes.items() if _ask(pipe)}
    end, found = time.monotonic() + PATIENCE_S, {}
    for number, pipe in asked.items():
        try:
            if pipe.poll(max(0.0, end - time.monotonic())):
                found[number] = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            continue  # it has ended; the next one will answer in its place
    return found


def _ask(pipe: Connection) -> bool:
    """Whether the worker could be asked. An answer that came too late for the scrape before is thrown away."""
    try:
        while pipe.poll():
            pipe.recv_bytes()
        pipe.send_bytes(ASK)
    except (EOFError, OSError):
        return False
    return True


def families(snapshots: Mapping[int, Snapshot]) -> dict[str, Metric]:
    """Snapshots of workers, by number, as one family for each name."""
    found: dict[str, Metric] = {}
    for number, snapshot in snapshots.items():
        for told in snapshot:
            name, labels = told["name"], (WORKER, *told["labels"])
            if name not in found:
                found[name] = _family(told["kind"], name, told["meaning"], labels)
            for values, value in told["samples"]:
                _add(found[name], [str(number), *values], value)
    return found


def _family(kind: str, name: str, meaning: str, labels: tuple[str, ...]) -> Metric:
    if kind == "counter":
        return CounterMetricFamily(name, meaning, labels=labels)
    if kind == "gauge":
        return GaugeMetricFamily(name, meaning, labels=labels)
    return HistogramMetricFamily(name, meaning, labels=labels)


def _add(family: Any, labels: list[str], value: Any) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, value)
        return
    total, buckets = 0, []
    for bound, count in zip([*map(str, value["bounds"]), "+Inf"], value["counts"], strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(labels, buckets, value["sum"])
