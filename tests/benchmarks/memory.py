"""Memory of a worker after a million calls and a hundred reloads of the same bundle, published under new versions."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
from tidemark.v1 import scoring_pb2

from feature_store.bundles import bundle
from tests.benchmarks import million
from tests.benchmarks.setting import UNARY, Bench, Measured, Server, customer_id, tidemark_server

RELOADS: Final = 100
WARM_UP_RELOADS: Final = 2
"""So that memory of a model that was given up is among what the process has."""
RELOAD_S: Final = 20.0
"""A server that answers with the old version for longer does not watch its registry."""
REST_S: Final = 3.0
ASK_S: Final = 0.05


def worker_memory(bench: Bench, calls: int = million.CALLS, reloads: int = RELOADS) -> Measured:
    """Memory after calls and reloads, over that after the warm-up; infinite where there were no reloads."""
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder) / "registry"
        shutil.copytree(bench.registry, registry, symlinks=True)
        with tidemark_server(registry, bench.url) as server:
            million.run(server.port, million.WARM_UP)
            if reload(server, registry, WARM_UP_RELOADS) < WARM_UP_RELOADS:
                return math.inf, "a newer bundle in the registry is not served: there were no reloads to measure"
            before = settled(server)
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(million.run, server.port, calls)
                seen = reload(server, registry, reloads)
                failed, wrong = loading.result()
            after = settled(server)
    note = f"{after / 2**20:.0f} over {before / 2**20:.0f} MB, {calls:,} calls beside {seen} reloads; {failed} failed"
    return (after / before if seen == reloads and not failed + wrong else math.inf), f"{note}, {wrong} wrong"


def settled(server: Server) -> int:
    """Resident bytes of the server when it has come to rest."""
    time.sleep(REST_S)
    return int(server.process.memory_info().rss)


def reload(server: Server, registry: Path, times: int) -> int:
    """Publish the current bundle under new versions, each when the one before is served; how many came to be."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        ask: Any = channel.unary_unary(UNARY, None, scoring_pb2.ScoreCustomerResponse.FromString)
        for done in range(times):
            if not _served(ask, published(registry)):
                return done
    return times


def published(registry: Path) -> str:
    """The current bundle once more, under a version of its own."""
    result = bundle.read(registry)
    version = f"{result.manifest.created[:10].replace('-', '')}-{time.time_ns()}"
    golden = (registry / bundle.CURRENT / bundle.GOLDEN_FILE).read_bytes()
    bundle.publish(registry, result.manifest.model_copy(update={"version": version}), result.model, golden)
    return version


def _served(ask: Any, version: str) -> bool:
    """Whether answers come from a version within the time for it."""
    request = scoring_pb2.ScoreCustomerRequest(customer_id=customer_id(1)).SerializeToString()
    end = time.monotonic() + RELOAD_S
    while time.monotonic() < end:
        if ask(request, timeout=RELOAD_S).score.model_version == version:
            return True
        time.sleep(ASK_S)
    return False
