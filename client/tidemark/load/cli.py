"""The command: how many calls a server answers, how fast, and where that ends."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from feature_store.errors import InputError
from tidemark.load.ids import from_file
from tidemark.load.plan import (
    MAX_BATCH,
    MAX_CONNECTIONS,
    MAX_DEADLINE_MS,
    MAX_DURATION_S,
    MAX_PROCESSES,
    MAX_RATE,
    MAX_STEPS,
    MAX_WARM_UP_S,
    Access,
    Plan,
    find_target,
)
from tidemark.load.rate_search import Found, search
from tidemark.load.reporting import report
from tidemark.load.reporting.terminal import begun, progress, show, step_line, verdict
from tidemark.load.results import Result
from tidemark.load.sending.processes import Crew

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False, writable=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("target", metavar="HOST:PORT")
@click.option("--redis", "url", envvar="REDIS_URL", help="Ask for customers that are in this Redis, with --registry.")
@click.option("--registry", type=click.Path(path_type=Path), help="Folder of bundles; the current one names the keys.")
@click.option("--ids", "ids_file", type=FILE, help="Ask for the ids in this file, one a line.")
@click.option(
    "--rate", default=100.0, type=click.FloatRange(0.1, MAX_RATE), help="Calls a second; where --find begins."
)
@click.option("--duration", default=10.0, type=click.FloatRange(0.1, MAX_DURATION_S), help="Seconds, of each step.")
@click.option("--warm-up", default=1.0, type=click.FloatRange(0, MAX_WARM_UP_S), help="Seconds before, not counted.")
@click.option("--arrivals", default="poisson", type=click.Choice(["poisson", "constant"]), help="How calls come in.")
@click.option("--draw", default="zipf", type=click.Choice(["zipf", "uniform"]), help="How ids are drawn.")
@click.option("--zipf-exponent", default=1.0, type=click.FloatRange(0, 5), help="0 is uniform, 1 a shop's usual.")
@click.option("--batch", type=click.IntRange(1, MAX_BATCH), help="Ids a call [default: unary calls].")
@click.option("--deadline-ms", default=1000.0, type=click.FloatRange(1, MAX_DEADLINE_MS), help="Of each call.")
@click.option("--connections", default=4, type=click.IntRange(1, MAX_CONNECTIONS), help="In all processes together.")
@click.option(
    "--processes", default=1, type=click.IntRange(1, MAX_PROCESSES), help="That send; each takes up to a core."
)
@click.option("--p99-ms", type=click.FloatRange(min=0.001), help="The aim: 99 % of all calls answered within this.")
@click.option("--find", is_flag=True, help="Search the highest rate that holds --p99-ms.")
@click.option("--steps", default=16, type=click.IntRange(1, MAX_STEPS), help="Most steps of a search.")
@click.option(
    "--max-lag-ms", default=2.0, type=click.FloatRange(min=0.01), help="A call begun later is the generator's fault."
)
@click.option("--seed", default=1, type=click.IntRange(min=0), help="Of arrivals and ids.")
@click.option("--allow-remote", is_flag=True, help="Load a server that is not on this machine.")
@click.option("--tls", is_flag=True, help="Speak TLS, with the system's authorities.")
@click.option("--ca", type=FILE, help="PEM file of the authority over the server; sets TLS on.")
@click.option("--certificate", type=FILE, help="PEM file with a client's certificate; sets TLS on.")
@click.option("--key", type=FILE, help="PEM file with its key.")
@click.option("--token-file", type=FILE, help="File with a bearer token.")
@click.option("--json", "json_file", type=OUTPUT, help="Write the report as JSON.")
@click.option("--html", "html_file", type=OUTPUT, help="Write the report as one HTML file.")
@click.pass_context
def load(
    context: click.Context,
    /,
    target: str,
    url: str | None,
    registry: Path | None,
    ids_file: Path | None,
    warm_up: float,
    duration: float,
    allow_remote: bool,
    tls: bool,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    token_file: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    **rest: object,
) -> None:
    """Send score requests to the server at HOST:PORT at a given rate, whether it keeps up or not.

    Ends by itself; Ctrl-C ends it early, with a report of what there was. Exit code 1: the generator could not keep its
    times, or --p99-ms was not held.
    """
    access = _access(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file)
    found = find_target(target, allow_remote=allow_remote)
    if access.token and found.remote and not access.tls:
        raise InputError("a token is not sent to another machine in the clear: give --tls or --ca")
    plan = Plan(found, access, duration_s=duration, warm_up_s=warm_up, **rest)  # type: ignore[arg-type]  # click checked
    plan.check()
    access.context()
    ids, source = _ids(url, registry, ids_file)
    console, began = Console(stderr=True), datetime.now(UTC)
    results, highest = _run(plan, ids, console)
    said = verdict(plan, results, highest)
    shown = _shown(results, highest)
    show(Console(), plan, shown)
    click.echo(said)
    whole = report.Report(plan, source, began, results, highest, said, shown)
    if json_file:
        report.write(json_file, report.as_json(whole))
    if html_file:
        report.write(html_file, report.as_html(whole))
    context.exit(0 if _good(plan, shown, highest) else 1)


def _access(
    *, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> Access:
    if (certificate is None) is not (key is None):
        raise InputError("--certificate and --key go together: give both, or none")
    token = None
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8", errors="replace").strip()
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            raise InputError(f"{token_file} holds no token: one line of printable text is wanted")
    return Access(tls or ca is not None or certificate is not None, ca, certificate, key, token)


def _ids(url: str | None, registry: Path | None, ids_file: Path | None) -> tuple[list[str], str]:
    """The ids to ask for, and in words where they are from."""
    if ids_file is not None:
        ids = from_file(ids_file)
        return ids, f"{len(ids):,} ids of a file"
    if url is None or registry is None:
        raise InputError("whom to ask for? Give --redis with --registry, or --ids")
    from tidemark.load.stored import from_redis  # noqa: PLC0415  # half of the time to start, where it is not needed

    ids = from_redis(url, registry)
    return ids, f"{len(ids):,} customers in Redis"


def _run(plan: Plan, ids: list[str], console: Console) -> tuple[list[Result], Found | None]:
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a background job inherits it ignored
        signal.signal(number, _interrupt)
    results: list[Result] = []
    with Crew(plan, ids) as crew:
        console.print(begun(plan), highlight=False, soft_wrap=True)

        def step(rate: float) -> bool | None:
            with progress(plan, rate, len(results) + 1, console) as seen:
                results.append(crew.run(rate, seen))
            if plan.find:
                console.print(step_line(plan, len(results), results[-1]), highlight=False, soft_wrap=True)
            return None if crew.stopped else results[-1].holds

        if plan.find:
            return results, search(step, plan.rate, plan.most_rate, plan.steps)
        step(plan.rate)
    return results, None


def _shown(results: Sequence[Result], found: Found | None) -> Result:
    """The step that the report is about: of a search the one that held the highest rate, else the last."""
    best = [result for result in results if found is not None and result.rate == found.held]
    return (best or list(results))[-1]


def _good(plan: Plan, shown: Result, found: Found | None) -> bool:
    if found is not None:
        return found.held is not None
    return shown.valid and (plan.p99_ms is None or shown.holds)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
