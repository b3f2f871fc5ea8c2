"""``tidemark serve`` under a sampling profile: where the CPU time goes, written as JSON when the server stops.

A timer of CPU time interrupts the process. The sample is charged to the Python frame that was running or, if its module
is not listed, to its nearest caller whose module is. What C code does (parsing, the graph, sockets) counts for the
Python function that called it.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

from service.__main__ import main

INTERVAL_S: Final = 0.001
GROUPS: Final = {
    "feature_store.online": "redis",
    "feature_store.state": "states",
    "feature_store.bundles": "graph",
    "service.api": "protobuf",
    "service.batching": "batching",
    "service.scoring": "scorer",
    "service.scoring.model": "graph",
    "service.transport": "front",
    "service.transport.lean.http2": "http2",
}
"""The group of each module: that of the longest name here which is the module or a package around it."""


@cache
def group_of(module: str) -> str | None:
    """The group that a module's CPU time belongs to; None if it belongs to its caller's."""
    while module not in GROUPS:
        module, dot, _ = module.rpartition(".")
        if not dot:
            return None
    return GROUPS[module]


def profile() -> Counter[str]:
    """Start to count samples by group."""
    samples: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if group := group_of(frame.f_globals.get("__name__", "")):
                samples[group] += 1
                return
            frame = frame.f_back
        samples["loop"] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
    return samples


if __name__ == "__main__":
    counted = profile()
    try:
        main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(os.environ["PROFILE"]).write_text(json.dumps(counted))
