"""A short run of the fuzz, the same each time; ``python -m tests.fuzz --cases 400000 --seed N`` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.waiting import FIT_S

CASES = 4_000


def test_mutated_captures_of_real_traffic_find_nothing(tmp_path: Path) -> None:
    # As a script: the tests' folder gets onto the path, and the built wheel is what is fuzzed.
    script = Path(__file__).parents[1] / "fuzz.py"
    command = [sys.executable, str(script), "--cases", str(CASES), "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=FIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = re.search(r"^([\d,]+) answered", done.stdout, re.MULTILINE)
    assert result, done.stdout
    assert int(result[1].replace(",", "")) > CASES / 10, "most cases no longer get as far as a call"
