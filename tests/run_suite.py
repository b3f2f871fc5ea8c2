"""Runs the whole suite and says how long it took: ``python tests/run_suite.py [options of pytest]``."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

BUILD = Path("build")
# Integration tests come first: some of them fit models, and the longest should not begin last.
SUITE = ["tests/integration", "tests/unit", "tests/e2e", "tests/faults"]
# Two processes more than there are cores: many tests wait for a server or a timer.
WORKERS = ["--numprocesses", str(len(os.sched_getaffinity(0)) + 2), "--dist", "worksteal"]
# Each process imports all tests. With bytecode only the first one that gets to a file compiles it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main(options: list[str]) -> int:
    """Run the suite, write ``build/test.xml`` and ``build/test.json``, and return pytest's exit code."""
    BUILD.mkdir(exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "pytest", *WORKERS, f"--junitxml={BUILD / 'test.xml'}", *options, *SUITE]
    code = subprocess.run(command, check=False, env=ENVIRONMENT).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, cpu = round(time.monotonic() - began, 1), round(used.ru_utime + used.ru_stime, 1)
    figures = {"test_seconds": seconds, "test_cpu_seconds": cpu, "exit_code": code}
    (BUILD / "test.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"test_cpu_seconds: {cpu:.0f}\ntest_seconds: {seconds:.0f}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
