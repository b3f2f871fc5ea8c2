"""The command line ``python -m training``."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console

from feature_store.bundles import bundle
from feature_store.bundles.registry import list_versions
from feature_store.cli import run_cli
from feature_store.config import load_config
from feature_store.errors import InputError
from feature_store.files import write_output
from feature_store.offline.store import OfflineStore
from training.config import TrainingConfig
from training.customer_key import default_key_path, read_key, read_or_create_key
from training.fit import Fitted, gather_evidence, workers_for
from training.fit import fit as fit_bundle
from training.models.export import ParityError
from training.parallel import WorkerLostError
from training.progress import StepLines, progress_on, steps_of
from training.report.console import print_summary, print_warnings

PIPED_WIDTH = 160
"""Width in characters of a table that is written to a file or a pipe."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train models of churn, propensity and spend, and publish them as bundles."""


@cli.command()
@click.argument("config")
@click.option(
    "--registry", required=True, type=click.Path(path_type=Path), help="Folder in which bundles are published."
)
@click.option(
    "--activate/--no-activate",
    default=True,
    show_default=True,
    help="Make it the current bundle, which servers load; otherwise activate it later (ActivateModel, SetRollout).",
)
@click.option(
    "--evidence-later",
    is_flag=True,
    help="Publish as soon as the models are ready, and add evidence and report to the bundle afterwards.",
)
@click.option(
    "--customer-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Key of the hashes of customer ids in the evidence; a missing file is created. Never copy it to servers.  "
    "[default: REGISTRY.key]",
)
def fit(config: str, registry: Path, *, activate: bool, evidence_later: bool, customer_key: Path | None = None) -> None:
    """Fit the models of CONFIG, evaluate them on later data, and publish the bundle REGISTRY/<version>/.

    CONFIG is a TOML file or the name of a built-in config. The bundle is written completely or not at all. Unless
    --no-activate is given, REGISTRY/current points to it afterwards. With --evidence-later the bundle is published
    before its evidence and report exist; each of their files is added later, completely or not at all.
    """
    settings = load_config(TrainingConfig, config)
    _check_folder(registry)
    key_path = customer_key or default_key_path(registry)
    key_is_new = read_key(key_path) is None
    console = Console()
    with ExitStack() as stack:
        evidence: Mapping[str, bytes] = {}
        with progress_on(console) as progress:
            reading = progress.add_task("reading the source", total=1)
            source = stack.enter_context(OfflineStore(settings.source))
            progress.advance(reading)
            steps = steps_of(progress)
            try:
                with workers_for(source) as pool:
                    fitted = fit_bundle(settings, Path(config).stem, source, steps, pool)
                    if not evidence_later:
                        evidence = gather_evidence(fitted, source, steps, read_or_create_key(key_path), pool)
            except (ParityError, WorkerLostError) as error:
                sys.exit(f"error: {error}")
        # Before the bundle is published: a command that waits for it may use the terminal from then on.
        print_summary(console, fitted.manifest)
        print_warnings(console, fitted.findings)
        if key_is_new and registry.exists() and list_versions(registry):
            console.print(
                f"{key_path} did not exist and was created: the new bundle cannot be compared with earlier ones",
                highlight=False,
                soft_wrap=True,
            )
        folder = _published(registry, fitted, evidence, activate=activate)
        console.print(f"bundle {folder} ({fitted.manifest.fingerprint})", highlight=False, soft_wrap=True)
        if evidence_later:
            # In this process alone, so that a server has the other core, and in lines: others use the terminal now.
            _add_evidence(
                folder, gather_evidence(fitted, source, steps_of(StepLines(console)), read_or_create_key(key_path))
            )
            console.print(f"evidence and report added to {folder}", highlight=False, soft_wrap=True)


def _check_folder(registry: Path) -> None:
    """Refuse, before a fit that takes minutes, a registry whose folder cannot be made."""
    if registry.exists() and not registry.is_dir():
        raise InputError(f"--registry {registry} is a file: give a folder")
    existing = next(folder for folder in registry.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise InputError(f"--registry {registry} cannot be written: {os.strerror(errno.ENOTDIR)}: {existing} is a file")


@cli.command()
@click.argument("config")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the findings to this file as JSON.")
def audit(config: str, file: Path | None) -> int:
    """Check the data of CONFIG and print the findings, each with its fix.

    The exit code is 1 if a finding is fatal, so that no model can be fitted, otherwise 0.
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
@click.option("--events", metavar="FILE_OR_SQL", help="Table of events: a CSV, Parquet or JSON file, or a SELECT.")
@click.option("--attributes", metavar="FILE_OR_SQL", help="With --events: table with one row per customer.")
@click.option(
    "--snapshot", metavar="FILE_OR_SQL", help="Instead of --events: table with one row per customer, and a label."
)
@click.option("--label", metavar="COLUMN", help="With --snapshot: the column of the label.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the config to this file instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(
    events: str | None,
    attributes: str | None,
    snapshot: str | None,
    label: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Generate a config for a shop's tables: roles of the columns, the event that defines churn, and horizons.

    Guesses are marked in comments and on stderr. The economics are placeholders: please replace them.
    """
    from training.scaffold.events import scaffold_events  # noqa: PLC0415 - other commands start without it
    from training.scaffold.snapshot import scaffold_snapshot  # noqa: PLC0415

    if output is not None and output.exists() and not force:
        raise InputError(f"{output} already exists: name another file, or use --force")
    base = Path() if output is None else output.parent
    if events is not None and snapshot is None and label is None:
        scaffold = scaffold_events(events, attributes, base)
    elif snapshot is not None and events is None and attributes is None:
        scaffold = scaffold_snapshot(snapshot, label, base)
    else:
        raise InputError("give either --events (optionally with --attributes) or --snapshot (optionally with --label)")
    if output is None:
        print(scaffold.text, end="")
    elif force:
        write_output(output, scaffold.text)
    else:
        write_output(output, scaffold.text, overwrite=False)
    for line in (*scaffold.facts, *(f"unsure: {line}" for line in scaffold.unsure)):
        print(line, file=sys.stderr)


@cli.command()
@click.argument("folder", metavar="DIR/VERSION", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the report to this file instead of DIR/VERSION/report.html.",
)
def report(folder: Path, output: Path | None) -> None:
    """Write the report of a bundle: one HTML file that needs no network."""
    from training.report.render import write_report  # noqa: PLC0415  # matplotlib is slow to import

    print(write_report(folder, output))


@cli.command()
@click.argument("first", metavar="DIR/A", type=click.Path(path_type=Path))
@click.argument("second", metavar="DIR/B", type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write all figures to this file as JSON."
)
def compare(first: Path, second: Path, json_file: Path | None) -> None:
    """Test whether bundle B predicts better than bundle A, on the test rows that both have.

    The verdict rests on the difference in log loss and its 95 % interval from resampled customers. The exit code is 0
    whatever the verdict.
    """
    from training.evaluation.compare import compare as compare_bundles  # noqa: PLC0415  # as above
    from training.evaluation.compare import print_comparison  # noqa: PLC0415

    comparison = compare_bundles(first, second)
    if json_file:
        write_output(json_file, json.dumps(comparison.as_json(), indent=2) + "\n")
    print_comparison(Console(), comparison)


def _published(registry: Path, fitted: Fitted, evidence: Mapping[str, bytes], *, activate: bool) -> Path:
    """The folder of the published bundle; InputError where the registry cannot be written."""
    try:
        return bundle.publish(registry, fitted.manifest, fitted.model, fitted.golden, evidence, activate=activate)
    except OSError as error:
        raise InputError(f"--registry {registry} cannot be written: {error.strerror}") from error


def _add_evidence(folder: Path, evidence: Mapping[str, bytes]) -> None:
    try:
        bundle.add_files(folder, evidence)
    except OSError as error:
        raise InputError(f"the evidence cannot be written to {folder}: {error.strerror}") from error


if __name__ == "__main__":
    run_cli(cli, "tidemark")
