"""Runs new histories for some minutes: ``python -m tests.faults [SECONDS]``; it ends by itself.

Prints ``faults_lost``, ``faults_doubled`` and ``faults_resurrected`` over all histories, and writes them to
``build/faults.json``. The exit code is 1 unless all are 0. A history that fails is named by its seed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

from tests.faults.history import History

SECONDS: Final = 600.0
STEPS: Final = 150
BUILD: Final = Path("build")


def main(seconds: float) -> int:
    """Run histories until the time is over."""
    figures: Counter[str] = Counter(faults_lost=0, faults_doubled=0, faults_resurrected=0, failed=0)
    end, seed = time.monotonic() + seconds, time.time_ns() % 2**32
    while time.monotonic() < end:
        seed += 1
        with tempfile.TemporaryDirectory() as folder:
            history = History(Path(folder), seed)
            try:
                for _ in range(STEPS):
                    history.step()
                figures.update(history.differences())
                history.check()
            except Exception as error:  # whatever it is, the next history may show more
                figures["failed"] += 1
                print(f"the history of seed {seed} failed: {type(error).__name__}: {error}", file=sys.stderr)
                traceback.print_exc(limit=-3)
            finally:
                history.node.close()
            figures["histories"] += 1
            figures["events"] += len(history.sent)
            figures["erasures"] += sum(number for step, number in history.steps.items() if "erase" in step)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "faults.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name}: {value}")
    return int(any(figures[name] for name in ("faults_lost", "faults_doubled", "faults_resurrected", "failed")))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
