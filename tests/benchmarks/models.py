"""Models that change under load: whether a call fails, and what the slowest ones notice.

``python -m tests.benchmarks.models`` is the other side: it points the registry at one of two bundles and the other in
turn, and waits each time until the server answers from it, from a process of its own, which is there before the calls
that are compared begin.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import grpc
import numpy as np
from tidemark.v1 import models_pb2, models_pb2_grpc

from feature_store.bundles import bundle
from feature_store.bundles.registry import list_versions
from tests.benchmarks import front, raw_load
from tests.benchmarks.setting import Bench, Measured, tidemark_server

SWITCHES: Final = 20
RUN_S: Final = 25.0
"""The server looks at the registry once a second, so that it takes so long to switch 20 times."""
PAIRS: Final = 3
LINES: Final = 96
"""Connections of the load."""
PATIENCE_S: Final = 10.0


def switches(bench: Bench) -> dict[str, Measured]:
    """Calls at half of the capacity while the model is switched 20 times, and before."""
    failed, ratios, befores = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder) / "registry"
        two_versions(bench, registry)
        with tidemark_server(registry, bench.url) as ours:
            half = raw_load.run(ours.port, connections=16, in_flight=1, seconds=1.0).calls / 2
            count = int(half * RUN_S)
            for _ in range(PAIRS):
                with switching(registry, ours.port) as (other, go):
                    before, lost = front.paced_all(ours.port, raw_load.Requests(ours.port), half, count, LINES)
                    failed += lost
                    go()
                    during, lost = front.paced_all(ours.port, raw_load.Requests(ours.port), half, count, LINES)
                    failed += lost
                    if other.wait(PATIENCE_S):
                        raise RuntimeError("not all switches were made")
                befores.append(float(np.quantile(before, front.P99)))
                ratios.append(float(np.quantile(during, front.P99)) / befores[-1])
    calls = f"{2 * PAIRS * count:,} calls at {half:,.0f} a second, {PAIRS} times {SWITCHES} switches"
    note = f"{statistics.median(befores) * 1e3:.1f} ms before; {min(ratios):.2f} to {max(ratios):.2f} in {PAIRS} pairs"
    return {"switch_failed": (float(failed), calls), "switch_p99": (statistics.median(ratios), note)}


def two_versions(bench: Bench, registry: Path) -> None:
    """A registry with the bundle, and with the same one under another version."""
    result = bench.bundle
    golden = (bench.registry / bundle.CURRENT / bundle.GOLDEN_FILE).read_bytes()
    again = result.manifest.model_copy(update={"version": f"{result.manifest.version}-again"})
    for manifest in (result.manifest, again):
        bundle.publish(registry, manifest, result.model, golden)


@contextmanager
def switching(registry: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """What makes the switches, spread over most of a run, and what has it begin."""
    options = {"registry": registry, "port": port, "seconds": 0.8 * RUN_S}
    provided = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.benchmarks.models", *provided]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        stdout.readline()
        try:
            yield process, stdin.close
        finally:
            process.kill()


@click.command()
@click.option("--registry", required=True, type=click.Path(path_type=Path))
@click.option("--port", required=True, type=int)
@click.option("--seconds", required=True, type=float)
def main(registry: Path, port: int, seconds: float) -> None:
    """Switch 20 times between the two bundles of a registry, evenly, and see that the server follows."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)
        stub.GetServingModel(models_pb2.GetServingModelRequest())
        click.echo("ready")
        sys.stdin.read()
        start = time.monotonic()
        for number in range(SWITCHES):
            serving = stub.GetServingModel(models_pb2.GetServingModelRequest()).version
            (other,) = {*list_versions(registry)} - {serving}
            bundle.set_link(registry, bundle.CURRENT, other)
            while stub.GetServingModel(models_pb2.GetServingModelRequest()).version != other:
                if time.monotonic() > start + seconds + PATIENCE_S:
                    sys.exit("the server does not follow")
                time.sleep(0.02)
            time.sleep(max(0.0, start + (number + 1) * seconds / SWITCHES - time.monotonic()))


if __name__ == "__main__":
    main()
