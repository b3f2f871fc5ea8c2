"""``python -m feature_store``: load, verify and prune states in Redis, archive live events, tell what it costs."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from feature_store.archive.mover import move, run
from feature_store.archive.writer import Archive
from feature_store.bundles import bundle
from feature_store.bundles.registry import in_use
from feature_store.capacity import measure
from feature_store.cli import run_cli
from feature_store.config import FeatureConfig, load_config
from feature_store.definitions import matches
from feature_store.errors import InputError
from feature_store.loading.load import REMEMBER_S, TOLERANCE, load_states, verify_states
from feature_store.offline.store import OfflineStore, SourceSummary
from feature_store.online.active_layouts import Pruner
from feature_store.online.store import LogReader, StateWriter
from feature_store.state.events import HOUR_S
from feature_store.state.layout import StateLayout
from feature_store.timestamps import utc_text

MONTH_US = 30 * 86_400e6


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


redis_option = click.option(
    "--redis",
    "url",
    required=True,
    metavar="URL",
    help="redis://host:port/db, unix:///path, redis+sentinel://… or redis+cluster://…",
    envvar="REDIS_URL",
)


registry_option = click.option(
    "--registry", required=True, type=click.Path(path_type=Path), help="Folder of bundles; its current one counts."
)


def common(command: Callable[..., None]) -> Callable[..., None]:
    """What commands about states are told: CONFIG, --registry, --bundle, --redis and --archive."""
    for decorate in (
        click.option(
            "--archive",
            type=click.Path(path_type=Path),
            help="Folder that live events are archived in, if they are [default: the source's].",
        ),
        redis_option,
        click.option(
            "--bundle",
            "version",
            default=bundle.CURRENT,
            metavar="VERSION",
            help="Another bundle of the registry, before it is served.",
        ),
        registry_option,
        click.argument("config"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Customer states in Redis: load them from the source, verify them, archive live events, tell what it all costs.

    CONFIG is a TOML file or the name of a built-in one.
    """


@cli.command()
@common
@click.option("--as-of", type=Time(), help="States as of this time [default: the newest event].")
@click.option("--shift-to-now", is_flag=True, help="Move all times so that --as-of becomes now (for old data sets).")
@click.option(
    "--max-lateness-hours",
    default=REMEMBER_S / HOUR_S,
    show_default=True,
    type=click.FloatRange(min=0),
    envvar="TIDEMARK_MAX_LATENESS_HOURS",
    help="As the server has it: so long the source's event ids are remembered, should the events come in live too.",
)
def load(
    *,
    config: str,
    registry: Path,
    version: str,
    url: str,
    archive: Path | None,
    as_of: float | None,
    shift_to_now: bool,
    max_lateness_hours: float,
) -> None:
    """Write the states of all customers of CONFIG's source, and of all live events, into Redis.

    Events may come in meanwhile: nothing is counted twice, and nothing is dropped.
    """
    settings, layout = _open(config, registry, version)
    with StateWriter(url, layout) as redis, OfflineStore(settings.source) as source:
        _say_left_out(source.summary)
        done = load_states(
            source,
            redis,
            layout,
            as_of,
            shift_to_now=shift_to_now,
            archive=archive or settings.source.archive_folder,
            remember_s=max_lateness_hours * HOUR_S,
        )
    if shift_to_now:
        click.echo(
            f"times shifted by {done.shift / 86_400:+,.1f} days: {utc_text(done.as_of)} in the data is now, "
            f"{utc_text(done.as_of + done.shift)}"
        )
    notes = [
        f", {number:,} {what}"
        for number, what in (
            (done.removed, "removed of whom nothing is known"),
            (done.withheld, "left as they were without consent"),
            (done.changed, "changed by events meanwhile"),
        )
        if number
    ]
    click.echo(
        f"loaded {done.customers:,} customers as of {utc_text(done.as_of)}: {len(layout.features)} features, "
        f"{layout.dtype.itemsize} bytes each, fingerprint {layout.fingerprint}{''.join(notes)}"
    )


@cli.command()
@common
@click.option("--sample", type=click.IntRange(min=1), help="Compare only this many customers, drawn at random.")
@click.option("--as-of", type=Time(), help="Compare with the source alone up to this time, for example after a replay.")
def verify(
    *,
    config: str,
    registry: Path,
    version: str,
    url: str,
    archive: Path | None,
    sample: int | None,
    as_of: float | None,
) -> None:
    """Recompute states and compare them with what Redis holds; exit code 1 if they differ.

    They are those of the last load's source and of what came in live, unless --as-of is given.
    """
    settings, layout = _open(config, registry, version)
    with StateWriter(url, layout) as redis, OfflineStore(settings.source) as source:
        folder = archive or settings.source.archive_folder
        found = verify_states(source, redis, layout, sample=sample, as_of=as_of, archive=folder)
    click.echo(f"compared            {found.compared:,} of {found.customers:,} customers")
    click.echo(f"mismatches          {found.mismatches:,}")
    click.echo(f"missing in Redis    {found.missing:,}")
    click.echo(f"extra in Redis      {found.extra:,}")
    click.echo(f"largest difference  {found.largest_difference:.3g} (relative; allowed {TOLERANCE:g})")
    click.echo("online equals offline" if found.ok else "ONLINE DIFFERS FROM OFFLINE: load again, then find out why")
    if not found.ok:
        sys.exit(1)


@cli.command()
@redis_option
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Folder of the archive.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between moves.")
@click.option("--once", is_flag=True, help="Move what there is, and end.")
def archive(url: str, folder: Path, every: float, once: bool) -> None:
    """Move live events from Redis into Parquet files, until stopped.

    `tidemark fit` reads them with `[source] archive = "FOLDER"`. One process per archive.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with LogReader(url) as log, Archive(folder) as into:
        if log.is_cluster:
            raise InputError("a Redis cluster takes no live events, so there is nothing to archive: use a single Redis")
        if once:
            click.echo(f"archived {move(log, into):,} commits in {folder}, up to {into.position:,}")
            return
        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        run(log, into, every, stopping)


@cli.command()
@click.argument("config")
@click.option("--registry", type=click.Path(path_type=Path), help="Where the bundle is, for a config with candidates.")
@click.option(
    "--events-per-month", default=100, show_default=True, type=click.IntRange(0, 10_000), help="Of each customer."
)
@click.option(
    "--million",
    "millions",
    multiple=True,
    default=(1.0, 10.0),
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Millions of customers to tell the total for.",
)
def cost(config: str, registry: Path | None, events_per_month: int, millions: tuple[float, ...]) -> None:
    """Measure what CONFIG's features cost: bytes a customer, microseconds an event and a score, totals.

    It takes some seconds, in a Redis of its own. Compare configs by running it for each. Of a config with candidates
    the features are those that training kept: name the registry.
    """
    settings = load_config(FeatureConfig, config)
    if settings.candidates is not None and registry is None:
        raise InputError(f"{config} has candidates: fit it, and name with --registry where the bundle is")
    layout = StateLayout(settings.feature) if registry is None else _open(config, registry)[1]
    found = measure(layout, settings.interests, events_per_month)
    total = found.redis_state_bytes + found.redis_record_bytes
    click.echo(f"features             {len(layout.features)}")
    click.echo(
        f"state                {found.state_bytes} bytes packed, {found.redis_state_bytes:,.0f} in Redis, a customer"
    )
    click.echo(
        f"record               {found.redis_record_bytes:,.0f} bytes in Redis, at {events_per_month:,} events a month"
    )
    click.echo(f"event                {found.event_us:.1f} µs of the server, {found.event_redis_us:.1f} µs of Redis")
    click.echo(f"score, less graph    {found.score_us:.1f} µs of the server, {found.score_redis_us:.1f} µs of Redis")
    for million in millions:
        load = million * 1e6 * events_per_month * (found.event_us + found.event_redis_us) / MONTH_US
        click.echo(
            f"{million:g} million customers  {total * million * 1e6 / 2**30:,.2f} GiB in Redis, events take "
            f"{load:.2%} of a core"
        )


@cli.command()
@registry_option
@redis_option
@click.option("--keep", multiple=True, metavar="VERSION", help="Keep the states of this bundle too.")
def prune(registry: Path, url: str, keep: tuple[str, ...]) -> None:
    """Remove the states of bundles that are served no more, and tell servers to keep them up no longer.

    What the registry serves or tries out stays, and each --keep: without it, to go back to a bundle with other features
    takes a load first. Customers' records (consent, aliases, interests) are not touched.
    """
    try:
        kept = {one.fingerprint: one.version for one in in_use(registry, keep)}
    except (bundle.BundleError, OSError) as error:
        raise InputError(f"nothing is removed, because what is in use cannot be told: {error}") from error
    with Pruner(url) as redis:
        for fingerprint in redis.fingerprints():
            if fingerprint in kept:
                click.echo(f"kept     {fingerprint}: bundle {kept[fingerprint]}")
            else:
                click.echo(f"removed  {fingerprint}: {redis.remove(fingerprint):,} states")


def _open(config: str, registry: Path, version: str = bundle.CURRENT) -> tuple[FeatureConfig, StateLayout]:
    settings = load_config(FeatureConfig, config)
    try:
        manifest = bundle.read(registry, version).manifest
    except bundle.BundleError as error:
        raise InputError(str(error)) from error
    attributes = any(feature.aggregate == "attribute" for feature in manifest.features)
    if not matches(settings.feature, manifest.features, settings.candidates) or (
        attributes and settings.source.attributes is None
    ):
        raise InputError(
            f"{config}: its features are not those of bundle {manifest.version} (fingerprint {manifest.fingerprint}): "
            "fit it first, or name the config the bundle was made with"
        )
    return settings, StateLayout(manifest.features)


def _say_left_out(summary: SourceSummary) -> None:
    for reason, rows in summary.left_out.items():
        click.echo(f"left out {rows:,} events {reason}")


if __name__ == "__main__":
    run_cli(cli, "tidemark")
