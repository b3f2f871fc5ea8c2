"""What a person sees in the terminal: how it goes, and in words what came of it."""

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
from tidemark.load.rate_search import Found
from tidemark.load.results import HELD, LATE_SHARE, Result, Tally, percentiles
from tidemark.load.sending.processes import Seen

REFRESH: Final = 4
SHOWN: Final = (50.0, 90.0, 99.0, 99.9, 100.0)
BOUND: Final = "the load generator was the bottleneck"


def begun(plan: Plan) -> str:
    """What is about to happen, in a line."""
    aim = f", to find the rate that holds a p99 of {plan.p99_ms:g} ms, in up to {plan.steps} steps" if plan.find else ""
    what = f"{plan.rate:,.1f} calls/s" + (f" of {plan.batch} ids" if plan.batch else "")
    return (
        f"loading {plan.target} with {what} ({plan.arrivals}) for {plan.duration_s:g} s{aim}, by {plan.processes} "
        f"process{'es' * (plan.processes > 1)} on {plan.connections} connections; Ctrl-C ends it early"
    )


@contextmanager
def progress(plan: Plan, rate: float, step: int, console: Console) -> Iterator[Seen]:
    """A table that follows a step."""
    with Live(console=console, refresh_per_second=REFRESH, transient=True) as live:

        def seen(tally: Tally, gone_s: float) -> None:
            live.update(_table(plan, rate, step, tally, gone_s))

        yield seen


def _table(plan: Plan, rate: float, step: int, tally: Tally, gone_s: float) -> Table:
    title = f"step {step}: " if plan.find else ""
    whole = plan.warm_up_s + plan.duration_s
    warm = " (warming up)" if gone_s < plan.warm_up_s else ""
    title += f"{rate:,.0f} calls/s, {min(gone_s, whole):.0f} of {whole:.0f} s{warm}"
    kinds = {kind: sum(n for o, n in tally.outcomes.items() if o.kind is kind) for kind in Kind}
    found = percentiles(tally.latency, (50.0, 99.0))
    return _row(title, {**{kind.value: f"{n:,}" for kind, n in kinds.items()}, **_latencies(found)})


def _row(title: str, cells: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in cells:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*cells.values())
    return table


def _latencies(found: dict[float, float]) -> dict[str, str]:
    return {f"{name_of(percent)} ms": milliseconds(value).removesuffix(" ms") for percent, value in found.items()}


def name_of(percent: float) -> str:
    """p99, p99.9, max."""
    return "max" if percent == 100 else f"p{percent:g}"  # noqa: PLR2004


def milliseconds(value: float | None) -> str:
    """In three digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"  # noqa: PLR2004


def step_line(plan: Plan, number: int, result: Result) -> str:
    """A step of a search, in a line."""
    word = "holds" if result.holds else f"cannot tell, {BOUND}" if not result.valid else "does not hold"
    within = (result.within or 0) / max(1, result.offered)
    return (
        f"step {number:2}: {result.rate:9,.1f} calls/s, p99 {milliseconds(result.percentiles.get(99.0)):>8}, "
        f"{within:.1%} answered within {plan.p99_ms:g} ms: {word}"
    )


def show(console: Console, plan: Plan, result: Result) -> None:
    """The table of a step, and what went wrong in it."""
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


def verdict(plan: Plan, results: Sequence[Result], found: Found | None) -> str:
    """What it comes to, in words that may be quoted."""
    last = results[-1]
    if found is not None:
        return _found(plan, results, found)
    if not last.valid:
        return invalid(last)
    word = "Stopped early. " if last.stopped else ""
    if plan.p99_ms is None:
        return f"{word}The load generator kept its times: {_lag(last)}."
    share = (last.within or 0) / last.offered
    holds = "holds" if last.holds else "does not hold"
    return (
        f"{word}{last.rate:,.1f} calls/s {holds} a p99 of {plan.p99_ms:g} ms: {share:.2%} of all calls were answered "
        f"within it ({HELD:.0%} are wanted). The load generator kept its times: {_lag(last)}."
    )


def invalid(result: Result) -> str:
    """Why a step says nothing about the server."""
    if not result.offered:
        return "NOT VALID: no call was made."
    never = f" and never began {result.unsent:,}" if result.unsent else ""
    return (
        f"NOT VALID: {BOUND}. It began {result.late:,} of {result.offered:,} calls too late{never} ({_lag(result)}; "
        f"at most {LATE_SHARE:.0%} may be), so the figures are not the server's. Give it more --processes, a lower "
        "--rate, or a machine of its own."
    )


def _lag(result: Result) -> str:
    lag = ", ".join(f"{name_of(p)} {milliseconds(v)}" for p, v in result.lag.items() if p in (50.0, 99.0, 100.0))
    return f"it was late by {lag}"


def _found(plan: Plan, results: Sequence[Result], found: Found) -> str:
    aim, word = f"a p99 of {plan.p99_ms:g} ms", "Stopped early. " if results[-1].stopped else ""
    broken = [result for result in results if result.rate == found.broke]
    if found.held is None:
        why = f" {invalid(broken[0])}" if broken and not any(result.valid for result in broken) else ""
        return f"{word}No rate was found that holds {aim} in {found.steps} steps.{why}"
    if not broken:
        return f"{word}At least {found.held:,.1f} calls/s hold {aim}: no higher rate was tried."
    if any(result.valid for result in broken):
        return f"{word}{found.held:,.1f} calls/s hold {aim}, {found.broke:,.1f} do not."
    return (
        f"{word}At least {found.held:,.1f} calls/s hold {aim}. At {found.broke:,.1f} {BOUND}: more --processes, or a "
        "machine of its own, may find more."
    )
