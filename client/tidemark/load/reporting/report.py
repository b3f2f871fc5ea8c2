"""The report of a load test: all figures as JSON, and one HTML file that asks for nothing from elsewhere."""

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

from feature_store.errors import InputError
from tidemark.load.outcomes import Kind, Outcome
from tidemark.load.plan import Plan
from tidemark.load.rate_search import Found
from tidemark.load.reporting.charts import Chart, draw
from tidemark.load.reporting.terminal import milliseconds, name_of
from tidemark.load.results import Result

FORMAT: Final = 1
CURVE_NAMES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True)
class Report:
    """What there is to tell: ``source`` of the ids in words, ``said`` the verdict, ``shown`` the step it is about."""

    plan: Plan
    source: str
    began: datetime
    results: list[Result]
    found: Found | None
    said: str
    shown: Result


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; InputError where that is not possible."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def settings(plan: Plan) -> dict[str, Any]:
    """What was asked for; of a token only that there was one."""
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
    """What the load came from."""
    return {
        "system": platform.platform(terse=True),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tidemark": version("tidemark"),
    }


def as_json(report: Report) -> str:
    """All of it; ``histogram`` is HdrHistogram's own encoding (V2, base64, µs), which its tools read and add up."""
    found = report.found
    whole = {
        "format": FORMAT,
        "began": report.began.isoformat(),
        "verdict": report.said,
        "valid": report.shown.valid,
        "highest_rate": None if found is None else found.held,
        "least_rate_that_broke": None if found is None else found.broke,
        "settings": settings(report.plan) | {"ids": report.source},
        "machine": machine(),
        "steps": [_step(result, report.plan) for result in report.results],
    }
    return json.dumps(whole, indent=1) + "\n"


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
            {"start_s": one.start_s, **one.calls, "p50_ms": one.p50_ms, "p99_ms": one.p99_ms, "max_ms": one.max_ms}
            for one in result.slices
        ],
        "histogram": result.histogram,
    }


def _counts(outcomes: dict[Outcome, int]) -> list[dict[str, Any]]:
    return [{"code": one.code, "reason": one.reason, "kind": one.kind, "number": n} for one, n in outcomes.items()]


# --- HTML -----------------------------------------------------------------------------------------------------------


def as_html(report: Report) -> str:
    """One page without scripts."""
    here = files("tidemark.load.reporting")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((here / "report.html.j2").read_text(encoding="utf-8")).render(
        style=(here / "report.css").read_text(encoding="utf-8"),
        report=report,
        result=report.shown,
        good=report.shown.valid and (report.plan.p99_ms is None or report.shown.holds),
        headline=_headline(report.shown),
        charts=_charts(report),
        tables=_tables(report),
    )


def _headline(result: Result) -> dict[str, str]:
    """The figures to look at first."""
    return {
        "offered": f"{result.offered / max(result.seconds, 1e-9):,.0f}/s",
        "answered": f"{result.calls(Kind.ANSWERED) / max(result.seconds, 1e-9):,.0f}/s",
        "not answered": f"{1 - result.calls(Kind.ANSWERED) / max(1, result.offered):.2%}",
        **{name_of(p): milliseconds(v) for p, v in result.percentiles.items() if p in (50.0, 99.0, 100.0)},
    }


def _charts(report: Report) -> list[Chart]:
    result, aim = report.shown, report.plan.p99_ms
    found = []
    if len(report.results) > 1:
        found.append(_search_chart(report))
    if result.curve:
        found += [_curve_chart(result, aim), _time_chart(result, aim)]
    return [*found, _rate_chart(result)] if result.slices else found


def _search_chart(report: Report) -> Chart:
    def points(results: Sequence[Result]) -> list[tuple[float, float]]:
        return sorted((result.rate, result.percentiles[99.0]) for result in results if result.percentiles)

    held = [result for result in report.results if result.holds]
    lines = {"held": points(held), "did not hold": points([r for r in report.results if r not in held])}
    caption = (
        "Each dot is a step; the line across is the aim. A step whose refusals are quick may lie low and not hold."
    )
    return draw("Steps of the search", caption, lines, ("calls/s", "p99, ms"), log_y=True, mark=report.plan.p99_ms)


def _curve_chart(result: Result, aim: float | None) -> Chart:
    """Percentiles as Gil Tene draws them: each nine as wide as the one before."""

    def place(percent: float) -> float:
        return -math.log10(1 - percent / 100)

    points = [(place(percent), value) for percent, value in result.curve if percent < 100]  # noqa: PLR2004
    last = points[-1][0] if points else 0.0
    ticks = [(place(percent), f"{percent:g}%") for percent in CURVE_NAMES if place(percent) <= last]
    caption = "So many of the calls took at most so long; those that ran out of time count with what they took."
    lines = {"latency": points or [(0.0, result.curve[-1][1])]}
    return draw("Latency by percentile", caption, lines, ("share of calls", "ms"), x_ticks=ticks, log_y=True, mark=aim)


def _time_chart(result: Result, aim: float | None) -> Chart:
    seen = [one for one in result.slices if one.p50_ms is not None]
    lines = {
        name: [(one.start_s, float(getattr(one, field))) for one in seen]
        for name, field in (("p50", "p50_ms"), ("p99", "p99_ms"), ("max", "max_ms"))
    }
    caption = "By the time at which calls should have begun."
    return draw("Latency over time", caption, lines, ("seconds", "ms"), log_y=True, mark=aim)


def _rate_chart(result: Result) -> Chart:
    each = result.slices[1].start_s if len(result.slices) > 1 else max(result.seconds, 1e-9)
    stops = [min(each, result.seconds - one.start_s) for one in result.slices]

    def rates(*kinds: Kind) -> list[tuple[float, float]]:
        pairs = zip(result.slices, stops, strict=True)
        return [(one.start_s, sum(one.calls[kind] for kind in kinds) / max(s, 1e-9)) for one, s in pairs]

    lines = {
        "offered": rates(*Kind),
        "answered": rates(Kind.ANSWERED),
        "refused": rates(Kind.REFUSED),
        "failed or expired": rates(Kind.FAILED, Kind.EXPIRED),
    }
    return draw("Rates over time", "By the time at which calls should have begun.", lines, ("seconds", "calls/s"))


Table = tuple[str, list[str], list[list[str]]]


def _tables(report: Report) -> list[Table]:
    result, plan = report.shown, report.plan
    outcomes = [
        [one.code, one.reason, one.kind.value, f"{n:,}", f"{n / max(1, result.offered):.2%}"]
        for one, n in result.outcomes.items()
    ]
    customers = [[one.code, one.reason, f"{n:,}"] for one, n in result.customers.items()]
    steps = [
        [
            f"{one.rate:,.1f}",
            milliseconds(one.percentiles.get(99.0)),
            f"{(one.within or 0) / max(1, one.offered):.2%}",
            "yes" if one.holds else "no" if one.valid else "cannot tell",
        ]
        for one in report.results
    ]
    figures = [(name_of(p), v, result.lag.get(p)) for p, v in result.percentiles.items()]
    found: list[Table] = [
        ("Outcomes by code and reason", ["code", "reason", "counts as", "calls", "share"], outcomes),
        ("Customers of batches without a score", ["code", "reason", "customers"], customers),
        ("Steps in order", ["calls/s", "p99", "within the aim", "holds"], steps if plan.find else []),
        (
            "Latency, and how late the generator was",
            ["", "latency", "lag"],
            [[n, milliseconds(v), milliseconds(g)] for n, v, g in figures],
        ),
        ("Models that answered", ["version", "customers"], [[name, f"{n:,}"] for name, n in result.models.items()]),
        ("Settings", ["setting", "value"], _pairs(settings(plan) | {"ids": report.source})),
        (
            "Where the load came from",
            ["", ""],
            _pairs(machine() | {"cores taken by the load": f"{result.cpu_cores:.2f}"}),
        ),
    ]
    return [table for table in found if table[2]]


def _pairs(found: dict[str, Any]) -> list[list[str]]:
    return [[name.replace("_", " "), f"{value}"] for name, value in found.items() if value is not None]
