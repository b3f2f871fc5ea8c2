"""The page of the benchmarks, from ``build/bench.json`` where ``make bench`` has written it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tidemark_docs.markdown import block, code, prose, table

RESULTS: Final = Path(__file__).parents[3] / "build" / "bench.json"
INTRODUCTION: Final = """\
# Benchmarks

Absolute times say more about a machine than about the code. Most figures are therefore ratios within one run: tidemark
and a reference are measured in turn, in pairs, and the median of the pairs counts. `make bench` measures all figures
and writes `build/bench.json`, from which this page is generated.
"""
ABSENT: Final = """\
:::{note}
No figures were measured before this page was built. Run `make bench` and then `make docs`.
:::
"""


def pages() -> dict[str, str]:
    """The page ``benchmarks.md``."""
    return {"benchmarks.md": page(json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page for the figures of ``build/bench.json``.

    Args:
        results: Name, value, goal, verdict (``ok``) and note of each figure; empty if nothing was measured.
    """
    measured = {result["name"]: result for result in results}
    parts = [INTRODUCTION] if measured else [INTRODUCTION, ABSENT]
    if measured:
        rows = [
            [code(name), _value(result), result["goal"] or "none", _verdict(result)]
            for name, result in measured.items()
        ]
        parts += ["## Overview\n", table(["figure", "value", "goal", "reached"], rows)]
    parts.append("## Each figure\n")
    for goals, measure in _figures():
        parts += [f"### {', '.join(map(code, goals))}\n", _meaning(measure), ""]
        notes = [
            f"- {code(name)}: {_value(measured[name])} ({prose(measured[name]['note'])})"
            for name in goals
            if name in measured
        ]
        parts += [*notes, ""] if notes else []
        wanted = [f"{code(name)} {goal}" for name, goal in goals.items() if goal]
        parts += [f"Goal: {', '.join(wanted)}.\n"] if wanted else []
        parts.append(block(f".venv/bin/python -m tests.benchmarks --only {next(iter(goals))}", "console"))
    return "\n".join(parts)


def _figures() -> Iterator[tuple[Mapping[str, str], Callable[..., Any]]]:
    """Goals by name, and the function that measures them, of the figures that are measured together."""
    from tests.benchmarks.figures import FIGURES, GROUPS  # noqa: PLC0415  # slow, and of the checkout, not the wheel

    for name, goal, measure in FIGURES:
        yield {name: goal}, measure
    yield from GROUPS


def _meaning(measure: Callable[..., Any]) -> str:
    function = measure.func if isinstance(measure, partial) else measure
    return prose((inspect.getdoc(function) or "").partition("\n\n")[0])


def _value(result: Mapping[str, Any]) -> str:
    return f"{result['value']:.4g}"


def _verdict(result: Mapping[str, Any]) -> str:
    if not result["goal"]:
        return ""
    return "yes" if result["ok"] else "**no**"
