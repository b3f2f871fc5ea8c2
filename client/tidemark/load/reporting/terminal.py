"""What a load test prints: its progress, its results, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tidemark.load.outcomes import Kind
from tidemark.load.plan import Plan
from tidemark.load.processes import OnProgress
from tidemark.load.rate_search import SearchResult
from tidemark.load.results import HELD_SHARE, MAX_LATE_SHARE, Result, Tally, percentiles

REFRESHES_PER_S: Final = 4
SHOWN: Final = (50.0, 90.0, 99.0, 99.9, 100.0)
BOTTLENECK: Final = "the load generator was the bottleneck"


def opening_line(plan: Plan) -> str:
    """One line that says what is about to happen."""
    goal = ""
    if plan.find:
        goal = f", to find the highest rate with a p99 of {plan.p99_ms:g} ms in up to {plan.steps} steps"
    load = f"{plan.rate:,.1f} calls/s" + (f" of {plan.batch} ids" if plan.batch else "")
    return (
        f"loading {plan.target} with {load} ({plan.arrivals}) for {plan.duration_s:g} s{goal}, from {plan.processes} "
        f"process{'es' * (plan.processes > 1)} on {plan.connections} connections; Ctrl-C ends it early"
    )


@contextmanager
def progress(plan: Plan, rate: float, step: int, console: Console) -> Iterator[OnProgress]:
    """Show a table on the console that follows a step."""
    with Live(console=console, refresh_per_second=REFRESHES_PER_S, transient=True) as live:

        def on_progress(tally: Tally, elapsed_s: float) -> None:
            live.update(_table(plan, rate, step, tally, elapsed_s))

        yield on_progress


def _table(plan: Plan, rate: float, step: int, tally: Tally, elapsed_s: float) -> Table:
    title = f"step {step}: " if plan.find else ""
    total_s = plan.warm_up_s + plan.duration_s
    warm_up = " (warming up)" if elapsed_s < plan.warm_up_s else ""
    title += f"{rate:,.0f} calls/s, {min(elapsed_s, total_s):.0f} of {total_s:.0f} s{warm_up}"
    calls = {kind: sum(n for outcome, n in tally.outcomes.items() if outcome.kind is kind) for kind in Kind}
    latencies = _latencies(percentiles(tally.latency, (50.0, 99.0)))
    return _row(title, {**{kind.value: f"{n:,}" for kind, n in calls.items()}, **latencies})


def _row(title: str, cells: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in cells:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*cells.values())
    return table


def _latencies(by_percent: dict[float, float]) -> dict[str, str]:
    return {f"{name_of(percent)} ms": milliseconds(value).removesuffix(" ms") for percent, value in by_percent.items()}


def name_of(percent: float) -> str:
    """The short name of a percentile: p99, p99.9, max."""
    return "max" if percent == 100 else f"p{percent:g}"  # noqa: PLR2004


def milliseconds(value: float | None) -> str:
    """A latency with about three digits; - for None."""
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"  # noqa: PLR2004


def step_line(plan: Plan, number: int, result: Result) -> str:
    """One line about a step of a search."""
    word = "holds" if result.holds else f"cannot tell, {BOTTLENECK}" if not result.valid else "does not hold"
    within = (result.within or 0) / max(1, result.offered)
    return (
        f"step {number:2}: {result.rate:9,.1f} calls/s, p99 {milliseconds(result.percentiles.get(99.0)):>8}, "
        f"{within:.1%} answered within {plan.p99_ms:g} ms: {word}"
    )


def print_result(console: Console, plan: Plan, result: Result) -> None:
    """Print the table of a step, and the calls that were not answered."""
    title = f"{result.rate:,.1f} calls/s for {result.seconds:.1f} s at {plan.target}"
    cells = {"offered": f"{result.offered:,}", **{kind.value: f"{result.calls(kind):,}" for kind in Kind}}
    console.print(_row(title, cells))
    if result.percentiles:
        console.print(_row("", _latencies({p: v for p, v in result.percentiles.items() if p in SHOWN})))
    for outcome, number in result.outcomes.items():
        if outcome.kind is not Kind.ANSWERED:
            console.print(f"{number:,} calls: {outcome.code} {outcome.reason}".rstrip(), highlight=False)
    for outcome, number in result.customers.items():
        console.print(f"{number:,} customers in batches: {outcome.code} {outcome.reason}", highlight=False)


def verdict(plan: Plan, results: Sequence[Result], search: SearchResult | None) -> str:
    """The result of the test in one or two sentences."""
    last = results[-1]
    if search is not None:
        return _search_verdict(plan, results, search)
    if not last.valid:
        return invalid(last)
    stopped = "Stopped early. " if last.stopped else ""
    if plan.p99_ms is None:
        return f"{stopped}The load generator kept up: {_lag(last)}."
    share = (last.within or 0) / last.offered
    holds = "holds" if last.holds else "does not hold"
    return (
        f"{stopped}{last.rate:,.1f} calls/s {holds} a p99 of {plan.p99_ms:g} ms: {share:.2%} of all calls were "
        f"answered within it (the goal is {HELD_SHARE:.0%}). The load generator kept up: {_lag(last)}."
    )


def invalid(result: Result) -> str:
    """Why a step says nothing about the server, in words."""
    if not result.offered:
        return "NOT VALID: no call was made."
    unsent = f" and never started {result.unsent:,}" if result.unsent else ""
    return (
        f"NOT VALID: {BOTTLENECK}. It started {result.late:,} of {result.offered:,} calls too late{unsent} "
        f"({_lag(result)}; at most {MAX_LATE_SHARE:.0%} may be late), so the figures do not describe the server. Use "
        "more --processes, a lower --rate, or a separate machine."
    )


def _lag(result: Result) -> str:
    lag = ", ".join(f"{name_of(p)} {milliseconds(v)}" for p, v in result.lag.items() if p in (50.0, 99.0, 100.0))
    return f"it started calls late by {lag}"


def _search_verdict(plan: Plan, results: Sequence[Result], search: SearchResult) -> str:
    goal, stopped = f"a p99 of {plan.p99_ms:g} ms", "Stopped early. " if results[-1].stopped else ""
    failed = [result for result in results if result.rate == search.failed]
    if search.held is None:
        why = f" {invalid(failed[0])}" if failed and not any(result.valid for result in failed) else ""
        return f"{stopped}No rate was found that holds {goal} in {search.steps} steps.{why}"
    if not failed:
        return f"{stopped}At least {search.held:,.1f} calls/s hold {goal}: no higher rate was tried."
    if any(result.valid for result in failed):
        return f"{stopped}{search.held:,.1f} calls/s hold {goal}, {search.failed:,.1f} do not."
    return (
        f"{stopped}At least {search.held:,.1f} calls/s hold {goal}. At {search.failed:,.1f} {BOTTLENECK}: more "
        "--processes or a separate machine may find a higher rate."
    )
