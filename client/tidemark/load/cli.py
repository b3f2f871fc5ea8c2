"""The command: how many calls a server can answer, how fast, and where its limit is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from tidemark.channel import auth_metadata
from tidemark.load.errors import InputError
from tidemark.load.ids import IdSource, read_ids
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
from tidemark.load.processes import SendingProcesses
from tidemark.load.rate_search import SearchResult, search
from tidemark.load.reporting import report
from tidemark.load.reporting.terminal import opening_line, print_result, progress, step_line, verdict
from tidemark.load.results import Result

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
FILE_OR_STDIN = click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False, writable=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("target", metavar="HOST:PORT")
@click.option("--ids", "ids_file", type=FILE_OR_STDIN, help="File with customer ids, one a line; - is stdin.")
@click.option(
    "--rate", default=100.0, type=click.FloatRange(0.1, MAX_RATE), help="Calls a second; with --find the first rate."
)
@click.option("--duration", default=10.0, type=click.FloatRange(0.1, MAX_DURATION_S), help="Seconds of each step.")
@click.option(
    "--warm-up", default=1.0, type=click.FloatRange(0, MAX_WARM_UP_S), help="Seconds before each step, not counted."
)
@click.option(
    "--arrivals", default="poisson", type=click.Choice(["poisson", "constant"]), help="How calls are spread over time."
)
@click.option("--draw", default="zipf", type=click.Choice(["zipf", "uniform"]), help="How ids are sampled.")
@click.option("--zipf-exponent", default=1.0, type=click.FloatRange(0, 5), help="Exponent of Zipf's law; 0 is uniform.")
@click.option("--batch", type=click.IntRange(1, MAX_BATCH), help="Ids in each call [default: unary calls].")
@click.option("--deadline-ms", default=1000.0, type=click.FloatRange(1, MAX_DEADLINE_MS), help="Deadline of each call.")
@click.option(
    "--connections", default=4, type=click.IntRange(1, MAX_CONNECTIONS), help="Connections of all processes together."
)
@click.option(
    "--processes", default=1, type=click.IntRange(1, MAX_PROCESSES), help="Sending processes; each takes up to a core."
)
@click.option("--p99-ms", type=click.FloatRange(min=0.001), help="The goal: 99 % of all calls answered within this.")
@click.option("--find", is_flag=True, help="Search for the highest rate that meets the goal.")
@click.option("--steps", default=16, type=click.IntRange(1, MAX_STEPS), help="Maximum number of steps of a search.")
@click.option(
    "--max-lag-ms",
    default=2.0,
    type=click.FloatRange(min=0.01),
    help="A call that starts later than this counts against the load generator.",
)
@click.option("--seed", default=1, type=click.IntRange(min=0), help="Seed of arrival times and ids.")
@click.option("--allow-remote", is_flag=True, help="Allow a server that is not on this machine.")
@click.option("--tls", is_flag=True, help="Use TLS with the system's CAs.")
@click.option("--ca", type=FILE, help="PEM file with the CA of the server's certificate; enables TLS.")
@click.option("--certificate", type=FILE, help="PEM file with a client certificate; enables TLS.")
@click.option("--key", type=FILE, help="PEM file with the key of the client certificate.")
@click.option("--token-file", type=FILE, help="File with a bearer token.")
@click.option("--json", "json_file", type=OUTPUT, help="File for the report as JSON.")
@click.option("--html", "html_file", type=OUTPUT, help="File for the report as HTML.")
@click.pass_context
def load(
    context: click.Context,
    /,
    target: str,
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
    ids: IdSource | None = None,
    **rest: object,
) -> None:
    """Send score requests to the server at HOST:PORT at a given rate, whether it keeps up or not.

    Ends by itself; Ctrl-C ends it early, with a report of the time until then. Exit code 1: the load generator could
    not keep up, or the goal (--p99-ms) was not met.
    """
    # ``ids`` is for callers of this function that have ids from elsewhere: see service.load_test.
    access = _access(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file)
    resolved = find_target(target, allow_remote=allow_remote)
    if access.token is not None:
        _check_token(access, target)
    plan = Plan(resolved, access, duration_s=duration, warm_up_s=warm_up, **rest)  # type: ignore[arg-type]  # by click
    plan.check()
    access.context()
    if ids is None:
        if ids_file is None:
            raise InputError("there are no customers to ask for: add --ids FILE")
        ids = read_ids(ids_file)
    console, started = Console(stderr=True), datetime.now(UTC)
    results, outcome = _run(plan, ids.ids, console)
    words = verdict(plan, results, outcome)
    shown = _shown(results, outcome)
    print_result(Console(), plan, shown)
    click.echo(words)
    document = report.Report(plan, ids.description, started, results, outcome, words, shown)
    if json_file:
        report.write(json_file, report.as_json(document))
    if html_file:
        report.write(html_file, report.as_html(document))
    context.exit(0 if _passed(plan, shown, outcome) else 1)


def main() -> NoReturn:
    """Run the command: bad input ends in one line on stderr and exit code 2, Ctrl-C in 130."""
    try:
        code = load.main(prog_name="python -m tidemark.load", standalone_mode=False)
    except click.ClickException as error:
        _end_with(error.format_message(), 2)
    except InputError as error:
        _end_with(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        _end_with("stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end_with(message: str, code: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _access(
    *, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> Access:
    if (certificate is None) is not (key is None):
        raise InputError("--certificate and --key go together: give both or neither")
    token = None if token_file is None else token_file.read_text(encoding="utf-8", errors="replace").strip()
    return Access(tls or ca is not None or certificate is not None, ca, certificate, key, token)


def _check_token(access: Access, target: str) -> None:
    """Check the token by the rules of the client library."""
    try:
        auth_metadata(access.token, target, secure=access.tls)
    except ValueError as error:
        raise InputError(f"--token-file: {error}") from error


def _run(plan: Plan, ids: Sequence[str], console: Console) -> tuple[list[Result], SearchResult | None]:
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a background job inherits it ignored
        signal.signal(number, _interrupt)
    results: list[Result] = []
    with SendingProcesses(plan, ids) as processes:
        console.print(opening_line(plan), highlight=False, soft_wrap=True)

        def step(rate: float) -> bool | None:
            with progress(plan, rate, len(results) + 1, console) as on_progress:
                results.append(processes.run(rate, on_progress))
            if plan.find:
                console.print(step_line(plan, len(results), results[-1]), highlight=False, soft_wrap=True)
            return None if processes.stopped else results[-1].holds

        if plan.find:
            return results, search(step, plan.rate, plan.max_rate, plan.steps)
        step(plan.rate)
    return results, None


def _shown(results: Sequence[Result], outcome: SearchResult | None) -> Result:
    """The step that the report is about: the one with the highest rate that held, or else the last one."""
    best = [result for result in results if outcome is not None and result.rate == outcome.held]
    return (best or list(results))[-1]


def _passed(plan: Plan, shown: Result, outcome: SearchResult | None) -> bool:
    if outcome is not None:
        return outcome.held is not None
    return shown.valid and (plan.p99_ms is None or shown.holds)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
