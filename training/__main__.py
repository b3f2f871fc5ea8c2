"""``python -m training``: fit a bundle from a config, show what it is worth, and compare it with another one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from feature_store import bundle
from feature_store.cli import run_cli
from feature_store.config import load_config
from feature_store.errors import InputError
from feature_store.offline import OfflineStore
from training.config import TrainingConfig
from training.export import ParityError
from training.fit import fit as fit_bundle
from training.summary import print_summary


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train churn, propensity and thresholds offline, and export them as one bundle."""


@cli.command()
@click.argument("config")
@click.option("--registry", required=True, type=click.Path(path_type=Path), help="Folder that takes the bundle.")
def fit(config: str, registry: Path) -> None:
    """Fit the models of CONFIG, check them on later data, and publish REGISTRY/<version>/.

    CONFIG is a TOML file or the name of a built-in one. The bundle is written whole or not at all, and
    REGISTRY/current points at it afterwards.
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
        folder = bundle.publish(registry, fitted.manifest, fitted.model, fitted.golden)
    except OSError as error:
        raise InputError(f"--registry {registry} cannot be written: {error.strerror}") from error
    print_summary(console, fitted.manifest, folder)


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
    from training.compare import compare as compare_bundles  # noqa: PLC0415  # as above
    from training.compare import print_comparison  # noqa: PLC0415

    found = compare_bundles(first, second)
    if json_file:
        try:
            json_file.write_text(json.dumps(found.as_json(), indent=2) + "\n")
        except OSError as error:
            raise InputError(f"--json {json_file} cannot be written: {error.strerror}") from error
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
    run_cli(cli)
