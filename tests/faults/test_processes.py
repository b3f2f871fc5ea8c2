"""Real processes under kill -9 for half a minute; ``make test-faults`` does it for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Trained
from tests.faults.chaos import Chaos


@pytest.mark.full
def test_nothing_is_lost_doubled_or_resurrected_when_processes_are_killed(small: Trained, tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, small.shop.config, small.registry, seed=1)
    try:
        chaos.run(30.0)
        chaos.go_back()
        chaos.fill_disk()
        chaos.finish()
    finally:
        chaos.close()
    assert chaos.problems == []
    assert [chaos.figures[f"faults_{kind}"] for kind in ("lost", "doubled", "resurrected")] == [0, 0, 0]
    assert chaos.figures["events"] > 0
