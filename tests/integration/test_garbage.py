"""A short run of ``garbage`` of the benchmark: hostile requests, values in Redis and bundles, on both fronts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import garbage


@pytest.mark.parametrize(("front", "bundles"), [("lean", 40), ("grpcio", 0)])
def test_garbage_gets_a_defined_status_or_a_right_score(registry: Path, front: str, bundles: int) -> None:
    result = garbage.feed(registry, 1200, 30, bundles, "--transport", front)
    assert result.faults == {}, result.said()
    assert result.counts["scores computed again"] > 50
    assert result.counts["values refused"] > 10
