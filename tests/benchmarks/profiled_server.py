"""``python -m service`` under a sampling profile: who the CPU goes to, written as JSON when the server stops.

A timer of CPU time interrupts the process; the Python frame that it finds, or the nearest caller whose module is
listed, is charged. What is done in C (parsing, the graph, sockets) counts for the Python function that called it.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

from service.__main__ import main

EVERY_S: Final = 0.001
OWNERS: Final = {
    "feature_store/online/store.py": "redis",
    "feature_store/state/layout.py": "states",
    "feature_store/bundles/onnx_session.py": "graph",
    "service/scoring/model.py": "graph",
    "service/api/scoring.py": "protobuf",
    "service/api/score_wire.py": "protobuf",
    "service/scoring/scorer.py": "scorer",
    "service/batching/score_batcher.py": "batching",
    "service/transport/lean/http2.py": "http2",
    "service/transport/lean/server.py": "front",
    "service/transport/lean/connection.py": "front",
    "service/transport/lean/call.py": "front",
    "service/transport/lean/call_types.py": "front",
    "service/transport/lean/lifetime.py": "front",
    "service/transport/lean/framing.py": "front",
}


def profile() -> Counter[str]:
    """Start to count samples."""
    samples: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        while frame is not None:
            name = "/".join(Path(frame.f_code.co_filename).parts[-2:])
            if name in OWNERS:
                samples[OWNERS[name]] += 1
                return
            frame = frame.f_back
        samples["loop"] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    return samples


if __name__ == "__main__":
    found = profile()
    try:
        main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(os.environ["PROFILE"]).write_text(json.dumps(found))
