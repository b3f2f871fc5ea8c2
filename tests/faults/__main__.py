"""Random faults for some minutes: ``python -m tests.faults [SECONDS]``; it ends by itself.

Two thirds of the time real processes are killed while clients call them; the rest goes to histories in one process,
which can be killed at every step of the code. Prints ``faults_lost``, ``faults_doubled`` and ``faults_resurrected``,
and writes them to ``build/faults.json``. The exit code is 1 unless all are 0 and nothing else went wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

from tests.faults.chaos import Chaos
from tests.faults.history import History
from tests.small_shop import write_small_shop

SECONDS: Final = 600.0
OF_PROCESSES: Final = 2 / 3
"""Share of the time for real processes."""
STEPS: Final = 150
BUILD: Final = Path("build")


def main(seconds: float) -> int:
    """Run both kinds, print the figures, and return the exit code."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}", flush=True)
    figures: Counter[str] = Counter(
        faults_lost=0, faults_doubled=0, faults_resurrected=0, failover_lost_new_master=0, failed=0
    )
    figures.update(run_processes(seconds * OF_PROCESSES, seed))
    figures.update(run_histories(seconds * (1 - OF_PROCESSES), seed))
    BUILD.mkdir(exist_ok=True)
    (BUILD / "faults.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name}: {value}")
    return int(any(figures[name] for name in ("faults_lost", "faults_doubled", "faults_resurrected", "failed")))


def run_processes(seconds: float, seed: int) -> Counter[str]:
    """Kill real processes for some time; returns figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_small_shop(folder / "shop")
        registry = folder / "registry"
        fit = [sys.executable, "-P", "-m", "training", "fit", str(config), "--registry", str(registry)]
        subprocess.run(fit, check=True, stdout=subprocess.DEVNULL)
        chaos = Chaos(folder, config, registry, seed)
        try:
            chaos.run(seconds)
            chaos.finish()
        finally:
            chaos.close()
    for problem in chaos.problems:
        print(problem, file=sys.stderr)
    return chaos.figures + Counter(failed=len(chaos.problems))


def run_histories(seconds: float, seed: int) -> Counter[str]:
    """Run histories until the time is over; returns figures. One that fails is named by its seed."""
    figures: Counter[str] = Counter()
    end = time.monotonic() + seconds
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
    return figures


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
