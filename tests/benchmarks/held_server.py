"""``tidemark serve`` on asyncio's own event loop, with a monitor: how long each callback held the loop.

Holds are CPU time of the loop's thread, so that other processes of the machine do not lengthen them. They are written
as JSON when the server stops: the time by the monotonic clock at which a callback ended, and its seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from service.__main__ import main

MIN_HOLD_S: Final = 0.0002
"""Shorter holds are not recorded."""


def monitor() -> list[tuple[float, float]]:
    """Start to record holds; returns the list that they are appended to."""
    holds: list[tuple[float, float]] = []
    handle_class: Any = asyncio.Handle
    run = handle_class._run

    def timed_run(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        run(handle)
        if (seconds := time.thread_time() - started) >= MIN_HOLD_S:
            holds.append((time.monotonic(), seconds))

    handle_class._run = timed_run
    vars(uvloop)["run"] = asyncio.run
    return holds


if __name__ == "__main__":
    recorded = monitor()
    try:
        main()
    finally:
        Path(os.environ["HOLDS"]).write_text(json.dumps(recorded))
