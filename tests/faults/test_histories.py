"""Short histories with fixed seeds; ``make test-faults`` runs new ones for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.history import History


@pytest.mark.parametrize("seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 4, 5))])
def test_nothing_is_lost_doubled_or_resurrected(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    try:
        for _ in range(40):
            history.step()
        history.check()
    finally:
        history.node.close()
