"""The report of a load test: all figures as JSON, and one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from tidemark.load.errors import InputError
from tidemark.load.outcomes import Kind, Outcome
from tidemark.load.plan import Plan
from tidemark.load.rate_search import SearchResult
from tidemark.load.reporting.charts import Chart, draw
from tidemark.load.reporting.terminal import milliseconds, name_of
from tidemark.load.results import Result

FORMAT: Final = 2
CURVE_NAMES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        plan: the load test.
        source: where the ids come from, in words.
        started: when the test started.
        results: the results of all steps.
        search: what the search has found; None without a search.
        verdict: the result in words.
        shown: the step that the report is about.
    """

    plan: Plan
    source: str
    started: datetime
    results: list[Result]
    search: SearchResult | None
    verdict: str
    shown: Result


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def settings(plan: Plan) -> dict[str, Any]:
    """The settings of a test; of a token only whether there was one."""
    return {
        "target": str(plan.target),
        "method": "ScoreCustomer" if plan.batch is None else "BatchScoreCustomers",
        "batch": plan.batch,
        "rate": plan.rate,
        "duration_s": plan.duration_s,
        "warm_up_s": plan.warm_up_s,
        "arrivals": plan.arrivals,
        "draw": plan.draw,
        "zipf_exponent": plan.zipf_exponent if plan.draw == "zipf" else None,
        "deadline_ms": plan.deadline_ms,
        "connections": plan.connections,
        "processes": plan.processes,
        "max_lag_ms": plan.max_lag_ms,
        "p99_ms": plan.p99_ms,
        "find": plan.find,
        "steps": plan.steps if plan.find else None,
        "seed": plan.seed,
        "tls": plan.access.tls,
        "client_certificate": plan.access.certificate is not None,
        "token": plan.access.token is not None,
    }


def machine() -> dict[str, Any]:
    """The machine that the load came from."""
    return {
        "system": platform.platform(terse=True),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tidemark_client": version("tidemark-client"),
    }


def as_json(report: Report) -> str:
    """The report as JSON; ``histogram`` is in HdrHistogram's encoding, which its tools can read and merge."""
    search = report.search
    document = {
        "format": FORMAT,
        "started": report.started.isoformat(),
        "verdict": report.verdict,
        "valid": report.shown.valid,
        "highest_rate": None if search is None else search.held,
        "lowest_rate_that_failed": None if search is None else search.failed,
        "settings": settings(report.plan) | {"ids": report.source},
        "machine": machine(),
        "steps": [_step(result, report.plan) for result in report.results],
    }
    return json.dumps(document, indent=1) + "\n"


def _step(result: Result, plan: Plan) -> dict[str, Any]:
    return {
        "rate": result.rate,
        "seconds": result.seconds,
        "valid": result.valid,
        "holds": None if plan.p99_ms is None else result.holds,
        "stopped": result.stopped,
        "offered": result.offered,
        **{kind.value: result.calls(kind) for kind in Kind},
        "answered_within_p99_ms": result.within,
        "outcomes": _counts(result.outcomes),
        "customers_without_score": _counts(result.customers),
        "customers_by_model": result.models,
        "latency_ms": {name_of(percent): value for percent, value in result.percentiles.items()}
        | {"mean": result.mean_ms},
        "generator": {
            "lag_ms": {name_of(percent): value for percent, value in result.lag.items()},
            "late": result.late,
            "unsent": result.unsent,
            "cpu_cores": result.cpu_cores,
        },
        "curve": [{"percent": percent, "ms": value} for percent, value in result.curve],
        "slices": [
            {"start_s": part.start_s, **part.calls, "p50_ms": part.p50_ms, "p99_ms": part.p99_ms, "max_ms": part.max_ms}
            for part in result.slices
        ],
        "histogram": result.histogram,
    }


def _counts(outcomes: dict[Outcome, int]) -> list[dict[str, Any]]:
    return [
        {"code": outcome.code, "reason": outcome.reason, "kind": outcome.kind, "number": number}
        for outcome, number in outcomes.items()
    ]


# --- HTML -----------------------------------------------------------------------------------------------------------


def as_html(report: Report) -> str:
    """The report as one HTML page without scripts."""
    folder = files("tidemark.load.reporting")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8")).render(
        style=(folder / "report.css").read_text(encoding="utf-8"),
        report=report,
        result=report.shown,
        good=report.shown.valid and (report.plan.p99_ms is None or report.shown.holds),
        headline=_headline(report.shown),
        charts=_charts(report),
        tables=_tables(report),
    )


def _headline(result: Result) -> dict[str, str]:
    """The most important figures."""
    return {
        "offered": f"{result.offered / max(result.seconds, 1e-9):,.0f}/s",
        "answered": f"{result.calls(Kind.ANSWERED) / max(result.seconds, 1e-9):,.0f}/s",
        "not answered": f"{1 - result.calls(Kind.ANSWERED) / max(1, result.offered):.2%}",
        **{name_of(p): milliseconds(v) for p, v in result.percentiles.items() if p in (50.0, 99.0, 100.0)},
    }


def _charts(report: Report) -> list[Chart]:
    result, goal = report.shown, report.plan.p99_ms
    charts = []
    if len(report.results) > 1:
        charts.append(_search_chart(report))
    if result.curve:
        charts += [_curve_chart(result, goal), _time_chart(result, goal)]
    return [*charts, _rate_chart(result)] if result.slices else charts


def _search_chart(report: Report) -> Chart:
    def points(results: Sequence[Result]) -> list[tuple[float, float]]:
        return sorted((result.rate, result.percentiles[99.0]) for result in results if result.percentiles)

    held = [result for result in report.results if result.holds]
    lines = {"held": points(held), "failed": points([r for r in report.results if r not in held])}
    caption = "Each dot is a step; the dashed line is the goal. Steps with quick refusals can have a low p99 and fail."
    return draw("Steps of the search", caption, lines, ("calls/s", "p99, ms"), log_y=True, mark=report.plan.p99_ms)


def _curve_chart(result: Result, goal: float | None) -> Chart:
    """Latency by percentile on Gil Tene's axis, where each further nine takes the same width."""

    def position(percent: float) -> float:
        return -math.log10(1 - percent / 100)

    points = [(position(percent), value) for percent, value in result.curve if percent < 100]  # noqa: PLR2004
    last = points[-1][0] if points else 0.0
    ticks = [(position(percent), f"{percent:g}%") for percent in CURVE_NAMES if position(percent) <= last]
    caption = (
        "The share of calls that took at most this long. Expired calls count with the time until they were given up."
    )
    lines = {"latency": points or [(0.0, result.curve[-1][1])]}
    return draw("Latency by percentile", caption, lines, ("share of calls", "ms"), x_ticks=ticks, log_y=True, mark=goal)


def _time_chart(result: Result, goal: float | None) -> Chart:
    slices = [part for part in result.slices if part.p50_ms is not None]
    lines = {
        name: [(part.start_s, float(getattr(part, field))) for part in slices]
        for name, field in (("p50", "p50_ms"), ("p99", "p99_ms"), ("max", "max_ms"))
    }
    caption = "By the time at which calls were due."
    return draw("Latency over time", caption, lines, ("seconds", "ms"), log_y=True, mark=goal)


def _rate_chart(result: Result) -> Chart:
    slice_s = result.slices[1].start_s if len(result.slices) > 1 else max(result.seconds, 1e-9)
    lengths = [min(slice_s, result.seconds - part.start_s) for part in result.slices]

    def rates(*kinds: Kind) -> list[tuple[float, float]]:
        pairs = zip(result.slices, lengths, strict=True)
        return [(part.start_s, sum(part.calls[kind] for kind in kinds) / max(s, 1e-9)) for part, s in pairs]

    lines = {
        "offered": rates(*Kind),
        "answered": rates(Kind.ANSWERED),
        "refused": rates(Kind.REFUSED),
        "failed or expired": rates(Kind.FAILED, Kind.EXPIRED),
    }
    return draw("Rates over time", "By the time at which calls were due.", lines, ("seconds", "calls/s"))


Table = tuple[str, list[str], list[list[str]]]


def _tables(report: Report) -> list[Table]:
    result, plan = report.shown, report.plan
    outcomes = [
        [outcome.code, outcome.reason, outcome.kind.value, f"{n:,}", f"{n / max(1, result.offered):.2%}"]
        for outcome, n in result.outcomes.items()
    ]
    customers = [[outcome.code, outcome.reason, f"{n:,}"] for outcome, n in result.customers.items()]
    steps = [
        [
            f"{step.rate:,.1f}",
            milliseconds(step.percentiles.get(99.0)),
            f"{(step.within or 0) / max(1, step.offered):.2%}",
            "yes" if step.holds else "no" if step.valid else "cannot tell",
        ]
        for step in report.results
    ]
    figures = [(name_of(p), v, result.lag.get(p)) for p, v in result.percentiles.items()]
    tables: list[Table] = [
        ("Outcomes by code and reason", ["code", "reason", "counts as", "calls", "share"], outcomes),
        ("Customers of batches without a score", ["code", "reason", "customers"], customers),
        ("Steps in order", ["calls/s", "p99", "within the goal", "holds"], steps if plan.find else []),
        (
            "Latency, and how late the load generator was",
            ["", "latency", "lag"],
            [[n, milliseconds(v), milliseconds(g)] for n, v, g in figures],
        ),
        (
            "Model versions that answered",
            ["version", "customers"],
            [[name, f"{n:,}"] for name, n in result.models.items()],
        ),
        ("Settings", ["setting", "value"], _pairs(settings(plan) | {"ids": report.source})),
        (
            "Machine that the load came from",
            ["", ""],
            _pairs(machine() | {"cores used by the load generator": f"{result.cpu_cores:.2f}"}),
        ),
    ]
    return [table for table in tables if table[2]]


def _pairs(values: dict[str, Any]) -> list[list[str]]:
    return [[name.replace("_", " "), f"{value}"] for name, value in values.items() if value is not None]
