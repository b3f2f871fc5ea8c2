"""``tidemark score``: ask a running server for scores and print them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import grpc

from feature_store.cli import run_cli
from feature_store.errors import InputError
from tidemark import Alert, CallFailedError, Problem, Score, ScoringClient
from tidemark.channel import DEFAULT_TARGET

TIMEOUT_S: Final = 10.0
HEADINGS: Final = ("customer", "churn", "threshold", "alert", "propensity", "threshold", "alert", "expected spend")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("customer_ids", metavar="CUSTOMER_ID...", nargs=-1, required=True)
@click.option(
    "--target",
    metavar="HOST:PORT",
    envvar="TIDEMARK_TARGET",
    default=DEFAULT_TARGET,
    show_default=True,
    help="The server, or TIDEMARK_TARGET.",
)
@click.option(
    "--explain", is_flag=True, help="Also print what moves each probability, and what each threshold is made of."
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="PEM file with the CA of the server's certificate; enables TLS.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the token of a caller with the scope score [default: the token in TIDEMARK_TOKEN, if any].",
)
def score(customer_ids: Sequence[str], target: str, ca: Path | None, token_file: Path | None, *, explain: bool) -> None:
    """Ask a running server to score customers, and print the answers.

    The exit code is 1 if a customer has no score; the reason is on stderr.
    """
    token = os.environ.get("TIDEMARK_TOKEN") if token_file is None else token_file.read_text().strip()
    credentials = None if ca is None else grpc.ssl_channel_credentials(ca.read_bytes())
    try:
        with ScoringClient(target, token=token, credentials=credentials, timeout_s=TIMEOUT_S) as client:
            results = client.score_many(customer_ids, explain=explain)
    except ValueError as error:
        raise InputError(f"{'TIDEMARK_TOKEN' if token_file is None else '--token-file'}: {error}") from error
    except CallFailedError as error:
        problem = error.problem
        raise InputError(f"{target}: {problem.reason or problem.code.name}: {problem.message}") from error
    scores = [result for result in results if isinstance(result, Score)]
    if scores:
        click.echo("\n".join(_table([HEADINGS, *map(_row, scores)])))
    if explain:
        for each in scores:
            _print_explanation(each)
    problems = [result for result in results if isinstance(result, Problem)]
    for problem in problems:
        click.echo(f"{problem.customer_id}: {problem.reason}: {problem.message}", err=True)
    if problems:
        raise SystemExit(1)


def _row(score: Score) -> tuple[str, ...]:
    return (score.customer_id, *_cells(score.churn), *_cells(score.propensity), f"{score.expected_spend:.2f}")


def _cells(alert: Alert) -> tuple[str, str, str]:
    return f"{alert.probability:.3f}", f"{alert.threshold:.3f}", "act" if alert.alert else "-"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _print_explanation(score: Score) -> None:
    for name, alert in (("churn", score.churn), ("propensity", score.propensity)):
        if (explanation := alert.explanation) is None:
            continue
        click.echo(
            f"\n{score.customer_id}, {name}: {alert.probability:.3f}; "
            f"a typical customer: {explanation.baseline_probability:.3f}"
        )
        for contribution in explanation.contributions:
            click.echo(f"{contribution.contribution:+.3f}  {contribution.sentence}")
        click.echo(f"{explanation.other_contribution:+.3f}  all other features")
        if explanation.threshold is not None:
            click.echo(f"threshold {alert.threshold:.3f}: {explanation.threshold.sentence}")


if __name__ == "__main__":
    run_cli(score, "tidemark score")
