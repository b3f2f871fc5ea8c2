"""Runs the suite as on a machine three times slower: two busy loops compete with it for every core.

Prints ``slow_machine: N failures``, and ends with the exit code of the suite.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

LOOPS_PER_CORE = 2
"""The suite keeps each core busy with one process, more or less, so that it gets about a third of the time."""
LOOP = (
    "import os, sys\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6):\n        pass\n"
)
REPORT = Path("build/test.xml")


def failures(report: Path) -> int:
    """Tests that failed or did not get that far, from pytest's report in the format of JUnit."""
    suites = ET.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get(kind, "0")) for suite in suites for kind in ("failures", "errors"))


def main(options: list[str]) -> int:
    """Run the suite beside busy loops."""
    REPORT.unlink(missing_ok=True)
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(LOOPS_PER_CORE * cores)]
    try:
        suite = Path(__file__).with_name("run_suite.py")
        code = subprocess.run([sys.executable, "-P", str(suite), *options], check=False).returncode
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    if not REPORT.exists():
        print("slow_machine: there is no report, so the number of failures is unknown")
        return code
    count = failures(REPORT)
    REPORT.with_name("slow_machine.json").write_text(json.dumps({"failures": count}) + "\n")
    print(f"slow_machine: {count} failures")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
