"""Exposes the metrics of all workers over HTTP, for Prometheus. The only module that imports prometheus_client.

::

    scrape ─► thread ─► pipe ─► event loop of each worker ─► snapshot ─► pipe ─► one page, with a label for the worker

Several workers share one address, and a worker that answered a scrape by itself would report its share as the whole.
So the process that starts the workers asks each of them. Their counts are not added up here: the counters of a worker
that is replaced restart at zero, which Prometheus can handle only if it sees each worker's counter by itself.
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

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_store.errors import InputError
from service.settings import Settings
from service.telemetry.scrape_server import start_scrape_server

if TYPE_CHECKING:  # the process that asks needs neither numpy nor grpcio
    from service.telemetry.metrics import Snapshot

SCRAPE: Final = b"?"
SCRAPE_TIMEOUT_S: Final = 2.0
"""Time for all workers together to answer; a scrape shows the workers that did."""
WORKERS: Final = ("tidemark_workers", "Worker processes that answered this scrape.")
"""Name and help text of the only metric that no worker counts itself."""
WORKER: Final = "worker"
"""The label with the number of the worker, from 0."""


def answer_scrapes(pipe: Connection, snapshot: Callable[[], Snapshot]) -> None:
    """Let the running event loop answer each scrape that comes through ``pipe``, until the pipe is closed."""
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
    """Expose the metrics of the workers over HTTP, if the settings have a port.

    Args:
        settings: The settings of the server.
        pipes: Returns a pipe to each worker, by number. It is called at each scrape, since workers come and go.

    Raises:
        InputError: The port is taken.
    """
    if not settings.metrics_port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(WorkerCollector(pipes))
    try:
        server = start_scrape_server(settings.metrics_host, settings.metrics_port, make_wsgi_app(registry))
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise InputError(f"cannot listen on {where} for metrics: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class WorkerCollector(Collector):
    """Collects the metrics of all workers at each scrape."""

    def __init__(self, pipes: Callable[[], Mapping[int, Connection]]) -> None:
        self._pipes: Final = pipes
        self._scraping: Final = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The metric families of all workers, each sample with the number of its worker."""
        with self._scraping:  # one scrape at a time, or an answer would be read by another scrape
            snapshots = _snapshots(self._pipes())
        workers = GaugeMetricFamily(*WORKERS)
        workers.add_metric([], len(snapshots))
        yield workers
        yield from families(snapshots).values()


def _snapshots(pipes: Mapping[int, Connection]) -> dict[int, Snapshot]:
    asked = {number: pipe for number, pipe in pipes.items() if _ask(pipe)}
    end, snapshots = time.monotonic() + SCRAPE_TIMEOUT_S, {}
    for number, pipe in asked.items():
        try:
            if pipe.poll(max(0.0, end - time.monotonic())):
                snapshots[number] = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            continue  # the worker has ended
    return snapshots


def _ask(pipe: Connection) -> bool:
    """Ask a worker; returns whether it could be asked. An answer that missed the scrape before is discarded."""
    try:
        while pipe.poll():
            pipe.recv_bytes()
        pipe.send_bytes(SCRAPE)
    except (EOFError, OSError):
        return False
    return True


def families(snapshots: Mapping[int, Snapshot]) -> dict[str, Metric]:
    """The metric families of some workers, by name, from their snapshots by the number of the worker."""
    by_name: dict[str, Metric] = {}
    for number, snapshot in snapshots.items():
        for family in snapshot:
            name, labels = family["name"], (WORKER, *family["labels"])
            if name not in by_name:
                by_name[name] = _family(family["kind"], name, family["help"], labels)
            for values, value in family["samples"]:
                _add(by_name[name], [str(number), *values], value)
    return by_name


def _family(kind: str, name: str, help_text: str, labels: tuple[str, ...]) -> Metric:
    if kind == "counter":
        return CounterMetricFamily(name, help_text, labels=labels)
    if kind == "gauge":
        return GaugeMetricFamily(name, help_text, labels=labels)
    return HistogramMetricFamily(name, help_text, labels=labels)


def _add(family: Any, labels: list[str], value: Any) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, value)
        return
    total, buckets = 0, []
    for bound, count in zip([*map(str, value["bounds"]), "+Inf"], value["counts"], strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(labels, buckets, value["sum"])
