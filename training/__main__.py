"""``python -m training``: fit a bundle from a config, show what it is worth, and compare it with another one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from feature_store.bundles import bundle
from feature_store.cli import run_cli
from feature_store.config import load_config
from feature_store.errors import InputError
from feature_store.files import write_output
from feature_store.offline.store import OfflineStore
from training.config import TrainingConfig
from training.fit import fit as fit_bundle
from training.models.export import ParityError
from training.report.console import print_summary

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where nobody has said how wide it may be."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train churn, propensity and thresholds offline, and export them as one bundle."""


@cli.command()
@click.argument("config")
@click.option("--registry", required=True, type=click.Path(path_type=Path), help="Folder that takes the bundle.")
@click.option(
    "--activate/--no-activate",
    default=True,
    show_default=True,
    help="Have servers go over to it; else it waits for ActivateModel or SetRollout.",
)
def fit(config: str, registry: Path, *, activate: bool) -> None:
    """Fit the models of CONFIG, check them on later data, and publish REGISTRY/<version>/.

    CONFIG is a TOML file or the name of a built-in one. The bundle is written whole or not at all, and
    REGISTRY/current points at it afterwards, unless it is not to be activated.
    """
    settings = load_config(TrainingConfig, config)
    if registry.exists() and not registry.is_dir():
        raise InputError(f"--registry {registry} is a file: name a folder")
    console = Console()
    with _progress(console) as progress:
        reading = progress.add_task("reading the source", total=1)
        with OfflineStore(settings.source) as source:
            progress.advance(reading)
            try:
                fitted = fit_bundle(settings, Path(config).stem, source, _steps(progress))
            except ParityError as error:
                sys.exit(f"error: {error}")
    try:
        folder = bundle.publish(
            registry, fitted.manifest, fitted.model, fitted.golden, fitted.beside, activate=activate
        )
    except OSError as error:
        raise InputError(f"--registry {registry} cannot be written: {error.strerror}") from error
    print_summary(console, fitted.manifest, folder)


@cli.command()
@click.argument("config")
@click.option("--json", "file", type=click.Path(path_type=Path), help="File that takes the findings as JSON.")
def audit(config: str, file: Path | None) -> int:
    """Look for trouble in the data of CONFIG: a table of findings, each with its fix.

    Exit code 1 where something is fatal, so that nothing could be fitted, else 0.
    """
    from training.audit.findings import audit as audit_source  # noqa: PLC0415 - other commands start without it
    from training.audit.findings import is_fatal, print_findings  # noqa: PLC0415

    settings = load_config(TrainingConfig, config)
    with OfflineStore(settings.source) as source:
        findings = audit_source(settings, source)
    if file is not None:
        write_output(file, json.dumps([finding.model_dump() for finding in findings], indent=2) + "\n")
    print_findings(Console(width=None if sys.stdout.isatty() else PIPED_WIDTH), findings)
    return int(is_fatal(findings))


@cli.command()
@click.option("--events", metavar="FILE_OR_SQL", help="Table of events: CSV, Parquet, JSON, or a SELECT.")
@click.option("--attributes", metavar="FILE_OR_SQL", help="With --events: a table with one row per customer.")
@click.option("--snapshot", metavar="FILE_OR_SQL", help="Instead of events: one row per customer, with a label.")
@click.option("--label", metavar="COLUMN", help="With --snapshot: the column with the label.")
@click.option("--output", type=click.Path(path_type=Path), help="File that takes the config, instead of stdout.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(
    events: str | None,
    attributes: str | None,
    snapshot: str | None,
    label: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Propose a config for a shop's tables: what each column is, what churn may mean, and horizons that fit.

    Whatever is a guess is said in comments and on stderr; figures of economics are placeholders for you to replace.
    """
    from training.scaffold.events import propose_events  # noqa: PLC0415 - other commands start without it
    from training.scaffold.snapshot import propose_snapshot  # noqa: PLC0415

    if output is not None and output.exists() and not force:
        raise InputError(f"{output} already exists: name another file, or use --force")
    base = Path() if output is None else output.parent
    if events is not None and snapshot is None and label is None:
        proposal = propose_events(events, attributes, base)
    elif snapshot is not None and events is None and attributes is None:
        proposal = propose_snapshot(snapshot, label, base)
    else:
        raise InputError("give --events (with --attributes, if there are any) or --snapshot (with --label, if need be)")
    if output is None:
        print(proposal.text, end="")
    elif force:
        write_output(output, proposal.text)
    else:
        write_output(output, proposal.text, overwrite=False)
    for line in (*proposal.found, *(f"unsure: {line}" for line in proposal.unsure)):
        print(line, file=sys.stderr)


@cli.command()
@click.argument("folder", metavar="DIR/VERSION", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="File to write in place of DIR/VERSION/report.html.")
def report(folder: Path, output: Path | None) -> None:
    """Draw what a fit found out: one HTML file, to be opened anywhere."""
    from training.report import write_report  # noqa: PLC0415  # matplotlib is slow to import

    print(write_report(folder, output))


@cli.command()
@click.argument("first", metavar="DIR/A", type=click.Path(path_type=Path))
@click.argument("second", metavar="DIR/B", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File that takes all figures.")
def compare(first: Path, second: Path, json_file: Path | None) -> None:
    """Say whether bundle B predicts better than bundle A, on the test rows that both have.

    Decided on log loss, by resampled customers. The exit code is 0 whatever the verdict.
    """
    from training.evaluation.compare import compare as compare_bundles  # noqa: PLC0415  # as above
    from training.evaluation.compare import print_comparison  # noqa: PLC0415

    found = compare_bundles(first, second)
    if json_file:
        write_output(json_file, json.dumps(found.as_json(), indent=2) + "\n")
    print_comparison(Console(), found)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _steps(progress: Progress) -> Callable[[str, int], Callable[[], None]]:
    def begin(name: str, parts: int) -> Callable[[], None]:
        task = progress.add_task(name, total=parts)
        return lambda: progress.advance(task)

    return begin


if __name__ == "__main__":
    run_cli(cli, "tidemark")
