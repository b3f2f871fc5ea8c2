"""``python -m feature_store``: load states into Redis, and verify them against the source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from feature_store import bundle
from feature_store.cli import run_cli
from feature_store.config import FeatureConfig, load_config
from feature_store.definitions import fingerprint
from feature_store.errors import InputError
from feature_store.loading import TOLERANCE, load_states, verify_states
from feature_store.offline import OfflineStore, SourceSummary, iso
from feature_store.online import StateWriter
from feature_store.state import StateLayout


class Time(click.ParamType[float]):
    """A moment in ISO 8601; UTC where it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"'{value}' is not a time: write for example 2017-12-31 or 2017-12-31T18:00:00+01:00", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def common(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands are told: CONFIG, --registry and --redis."""
    for decorate in (
        click.option(
            "--redis",
            "url",
            required=True,
            metavar="URL",
            help="redis://host:port/db or unix:///path",
            envvar="REDIS_URL",
        ),
        click.option(
            "--registry",
            required=True,
            type=click.Path(path_type=Path),
            help="Folder of bundles; its current one counts.",
        ),
        click.argument("config"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Customer states in Redis: load them from the source, verify them against it.

    CONFIG is a TOML file or the name of a built-in one.
    """


@cli.command()
@common
@click.option("--as-of", type=Time(), help="States as of this time [default: the newest event].")
@click.option("--shift-to-now", is_flag=True, help="Move all times so that --as-of becomes now (for old data sets).")
def load(config: str, registry: Path, url: str, as_of: float | None, shift_to_now: bool) -> None:
    """Write the states of all customers of CONFIG's source into Redis."""
    settings, layout = _open(config, registry)
    with StateWriter(url, layout) as redis, OfflineStore(settings.source) as source:
        _say_left_out(source.summary)
        done = load_states(source, redis, layout, as_of, shift_to_now=shift_to_now)
    if shift_to_now:
        click.echo(
            f"times shifted by {done.shift / 86_400:+,.1f} days: {iso(done.as_of)} in the data is now, "
            f"{iso(done.as_of + done.shift)}"
        )
    removed = f", {done.removed:,} removed that the source does not have" if done.removed else ""
    click.echo(
        f"loaded {done.customers:,} customers as of {iso(done.as_of)}: {len(layout.features)} features, "
        f"{layout.dtype.itemsize} bytes each, fingerprint {layout.fingerprint}{removed}"
    )


@cli.command()
@common
@click.option("--sample", type=click.IntRange(min=1), help="Compare only this many customers, drawn at random.")
def verify(config: str, registry: Path, url: str, sample: int | None) -> None:
    """Recompute states from CONFIG's source and compare them with what Redis holds; exit code 1 if they differ."""
    settings, layout = _open(config, registry)
    with StateWriter(url, layout) as redis, OfflineStore(settings.source) as source:
        found = verify_states(source, redis, layout, sample)
    click.echo(f"compared            {found.compared:,} of {found.customers:,} customers")
    click.echo(f"mismatches          {found.mismatches:,}")
    click.echo(f"missing in Redis    {found.missing:,}")
    click.echo(f"extra in Redis      {found.extra:,}")
    click.echo(f"largest difference  {found.largest_difference:.3g} (relative; allowed {TOLERANCE:g})")
    click.echo("online equals offline" if found.ok else "ONLINE DIFFERS FROM OFFLINE: load again, then find out why")
    if not found.ok:
        sys.exit(1)


def _open(config: str, registry: Path) -> tuple[FeatureConfig, StateLayout]:
    settings = load_config(FeatureConfig, config)
    try:
        manifest = bundle.read(registry).manifest
    except bundle.BundleError as error:
        raise InputError(str(error)) from error
    if fingerprint(settings.feature) != manifest.fingerprint:
        raise InputError(
            f"{config}: its features (fingerprint {fingerprint(settings.feature)}) are not those of bundle "
            f"{manifest.version} ({manifest.fingerprint}): fit it first, or name the config the bundle was made with"
        )
    return settings, StateLayout(manifest.features)


def _say_left_out(summary: SourceSummary) -> None:
    for reason, rows in summary.left_out.items():
        click.echo(f"left out {rows:,} events {reason}")


if __name__ == "__main__":
    run_cli(cli)
