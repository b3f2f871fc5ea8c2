"""``python -m feature_store``: load, verify and prune states in Redis, archive live events, measure costs."""

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

from feature_store.archive.mover import move, move_until_stopped
from feature_store.archive.writer import ArchiveWriter
from feature_store.bundles import bundle
from feature_store.bundles.registry import manifests_in_use
from feature_store.capacity import measure
from feature_store.cli import run_cli
from feature_store.config import FeatureConfig, load_config
from feature_store.definitions import features_match
from feature_store.erasure_check import traces_of
from feature_store.errors import InputError
from feature_store.loading.load import REMEMBER_S, TOLERANCE, load_states, verify_states
from feature_store.offline.store import OfflineStore, SourceSummary
from feature_store.online.active_layouts import Pruner
from feature_store.online.command_client import CommandClient
from feature_store.online.event_log import EventLog
from feature_store.online.state_writer import StateWriter
from feature_store.state.events import HOUR_S
from feature_store.state.layout import StateLayout
from feature_store.timestamps import utc_text

MONTH_US = 30 * 86_400e6


class Time(click.ParamType[float]):
    """A time in ISO 8601; UTC if it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds of a time."""
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
    help="Redis: redis://host:port/db, unix:///path, redis+sentinel://… or redis+cluster://….",
    envvar="REDIS_URL",
)


registry_option = click.option(
    "--registry", required=True, type=click.Path(path_type=Path), help="Folder of bundles; its current bundle is used."
)


accept_missing_option = click.option(
    "--accept-missing",
    is_flag=True,
    help="Go on although entries of the log in Redis are missing. The events in them are lost.",
)


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Arguments of commands about states: CONFIG, --registry, --bundle, --redis and --archive."""
    for decorate in (
        click.option(
            "--archive",
            type=click.Path(path_type=Path),
            help="Folder of the archive of live events, if there is one [default: the source's].",
        ),
        redis_option,
        click.option(
            "--bundle",
            "version",
            default=bundle.CURRENT,
            metavar="VERSION",
            help="Another bundle of the registry, for example before it is served.",
        ),
        registry_option,
        click.argument("config"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load customer states into Redis, verify them, prune them, archive live events, and measure costs.

    CONFIG is a TOML file or the name of a built-in config.
    """


@cli.command()
@common
@accept_missing_option
@click.option("--as-of", type=Time(), help="Load states as of this time [default: the newest event].")
@click.option("--shift-to-now", is_flag=True, help="Shift all times so that --as-of becomes now (for old data sets).")
@click.option(
    "--max-lateness-hours",
    default=REMEMBER_S / HOUR_S,
    show_default=True,
    type=click.FloatRange(min=0),
    envvar="TIDEMARK_MAX_LATENESS_HOURS",
    help="The server's setting. Ids of source events no older than this are remembered, to recognise duplicates.",
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
    accept_missing: bool,
) -> None:
    """Load the states of all customers into Redis.

    States are computed from CONFIG's source and all live events. Events may come in during the load: none is counted
    twice or lost.
    """
    settings, layout = _open(config, registry, version)
    folder = archive or settings.source.archive_folder
    folders = [] if folder is None else [folder]
    with (
        StateWriter(url, layout, accept_missing=accept_missing) as redis,
        OfflineStore(settings.source, folders) as source,
    ):
        _say_left_out(source.summary)
        done = load_states(
            source,
            redis,
            layout,
            as_of,
            shift_to_now=shift_to_now,
            archive=folder,
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
            (done.removed, "removed, about whom nothing is known"),
            (done.withheld, "left as they were, without consent"),
            (done.lost, "left without scores, because their profile was lost"),
            (done.changed, "changed by events during the load"),
        )
        if number
    ]
    click.echo(
        f"loaded {done.customers:,} customers as of {utc_text(done.as_of)}: {len(layout.features)} features, "
        f"{layout.dtype.itemsize} bytes each, fingerprint {layout.fingerprint}{''.join(notes)}"
    )


@cli.command()
@common
@accept_missing_option
@click.option("--sample", type=click.IntRange(min=1), help="Compare only this many customers, chosen at random.")
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
    accept_missing: bool,
) -> None:
    """Compare the states in Redis with recomputed ones.

    Exit code 1 if they differ. The expected states are those of the last load's source and of all live events, unless
    --as-of is given.
    """
    settings, layout = _open(config, registry, version)
    folder = archive or settings.source.archive_folder
    folders = [] if folder is None else [folder]
    with (
        StateWriter(url, layout, accept_missing=accept_missing) as redis,
        OfflineStore(settings.source, folders) as source,
    ):
        result = verify_states(source, redis, layout, sample=sample, as_of=as_of, archive=folder)
    click.echo(f"compared            {result.compared:,} of {result.customers:,} customers")
    click.echo(f"mismatches          {result.mismatches:,}")
    click.echo(f"missing in Redis    {result.missing:,}")
    click.echo(f"extra in Redis      {result.extra:,}")
    if result.lost:
        click.echo(f"profiles lost       {result.lost:,} (these customers get no score until their consent is stored)")
    click.echo(f"largest difference  {result.largest_difference:.3g} (relative; allowed {TOLERANCE:g})")
    click.echo("online equals offline" if result.ok else "ONLINE DIFFERS FROM OFFLINE: load again, then find out why")
    if not result.ok:
        sys.exit(1)


@cli.command()
@redis_option
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Folder of the archive.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds between moves.")
@click.option("--once", is_flag=True, help="Move what there is, and exit.")
@accept_missing_option
@click.option(
    "--new-redis",
    is_flag=True,
    help="Go on with a Redis that has lost everything, or with another one: its commits follow those in the archive.",
)
def archive(*, url: str, folder: Path, every: float, once: bool, accept_missing: bool, new_redis: bool) -> None:
    """Move live events from Redis into Parquet files until stopped.

    `tidemark fit` reads them with `[source] archive = "FOLDER"`. Run one process per archive.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with CommandClient(url) as client, ArchiveWriter(folder) as into:
        log = EventLog(client, accept_missing=accept_missing)
        if client.is_cluster:
            raise InputError("a Redis cluster accepts no live events, so nothing can be archived: use a single Redis")
        if once:
            log.remove_archived()
            click.echo(
                f"archived {move(log, into, new_redis=new_redis):,} commits in {folder}, up to {into.position:,}"
            )
            return
        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        move_until_stopped(log, into, every, stopping, new_redis=new_redis)


@cli.command()
@click.argument("config")
@click.option("--registry", type=click.Path(path_type=Path), help="Folder of bundles, for a config with candidates.")
@click.option(
    "--events-per-month", default=100, show_default=True, type=click.IntRange(0, 10_000), help="Events per customer."
)
@click.option(
    "--million",
    "millions",
    multiple=True,
    default=(1.0, 10.0),
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Millions of customers to show totals for.",
)
def cost(config: str, registry: Path | None, events_per_month: int, millions: tuple[float, ...]) -> None:
    """Measure what CONFIG's features cost.

    Shows bytes per customer, microseconds per event and per score, and totals. It takes some seconds and starts its own
    Redis. Run it for several configs to compare them. For a config with
    candidates, name the registry: the features are those that training selected.
    """
    settings = load_config(FeatureConfig, config)
    if settings.candidates is not None and registry is None:
        raise InputError(f"{config} has candidates: fit it, and name the registry of the bundle with --registry")
    layout = StateLayout(settings.feature) if registry is None else _open(config, registry)[1]
    costs = measure(layout, settings.interests, events_per_month)
    total = costs.redis_state_bytes + costs.redis_profile_bytes
    click.echo(f"features             {len(layout.features)}")
    click.echo(
        f"state                {costs.state_bytes} bytes packed, {costs.redis_state_bytes:,.0f} in Redis, per customer"
    )
    click.echo(
        f"profile              {costs.redis_profile_bytes:,.0f} bytes in Redis, at {events_per_month:,} events a month"
    )
    click.echo(f"event                {costs.event_us:.1f} µs of the server, {costs.event_redis_us:.1f} µs of Redis")
    click.echo(f"score without graph  {costs.score_us:.1f} µs of the server, {costs.score_redis_us:.1f} µs of Redis")
    for million in millions:
        load = million * 1e6 * events_per_month * (costs.event_us + costs.event_redis_us) / MONTH_US
        click.echo(
            f"{million:g} million customers  {total * million * 1e6 / 2**30:,.2f} GiB in Redis, events take "
            f"{load:.2%} of a core"
        )


@cli.command()
@registry_option
@redis_option
@click.option("--keep", multiple=True, metavar="VERSION", help="Keep the states of this bundle as well.")
def prune(registry: Path, url: str, keep: tuple[str, ...]) -> None:
    """Remove the states of bundles that are no longer served.

    Servers stop updating them as well. States of the bundles that the registry serves or tries out stay, and those of
    each --keep. Returning to a bundle whose states were removed requires a load first. Customer profiles (consent,
    aliases, interests) are not changed.
    """
    try:
        kept = {manifest.fingerprint: manifest.version for manifest in manifests_in_use(registry, keep)}
    except (bundle.BundleError, OSError) as error:
        raise InputError(f"nothing is removed, because the bundles in use cannot be read: {error}") from error
    with CommandClient(url) as client:
        pruner = Pruner(client)
        for fingerprint in pruner.fingerprints():
            if fingerprint in kept:
                click.echo(f"kept     {fingerprint}: bundle {kept[fingerprint]}")
            else:
                click.echo(f"removed  {fingerprint}: {pruner.remove(fingerprint):,} states")


@cli.command()
@redis_option
@click.option("--verify", "customer_ids", multiple=True, required=True, metavar="ID", help="An id of the customer.")
@click.option("--archive", type=click.Path(path_type=Path), help="Folder of the archive of live events.")
@click.option(
    "--search",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another folder to search, for example the registry with its evidence files.",
)
def erase(url: str, customer_ids: tuple[str, ...], archive: Path | None, folders: tuple[Path, ...]) -> None:
    """Prove that a deleted customer is gone.

    DeleteCustomer erases; this command then searches states of all features, profiles, the log, the archive and the
    named folders for the ids, and names the places without repeating an id. Exit code 1 if there are any. Memory of
    servers is not searched: the server that deletes a customer forgets it at once, another one at its next read.
    """
    with CommandClient(url) as client:
        traces = sorted(set(traces_of(client, customer_ids, archive, folders)))
    for trace in traces:
        click.echo(f"found  {trace}")
    if traces:
        click.echo(f"NOT ERASED: found in {len(traces):,} places")
        sys.exit(1)
    click.echo(f"erased: none of {len(customer_ids):,} ids is found anywhere")


def _open(config: str, registry: Path, version: str = bundle.CURRENT) -> tuple[FeatureConfig, StateLayout]:
    settings = load_config(FeatureConfig, config)
    try:
        manifest = bundle.read(registry, version).manifest
    except bundle.BundleError as error:
        raise InputError(str(error)) from error
    attributes = any(feature.aggregate == "attribute" for feature in manifest.features)
    if not features_match(settings.feature, manifest.features, settings.candidates) or (
        attributes and settings.source.attributes is None
    ):
        raise InputError(
            f"{config}: its features are not those of bundle {manifest.version} (fingerprint {manifest.fingerprint}): "
            "fit it first, or name the config that the bundle was made with"
        )
    return settings, StateLayout(manifest.features)


def _say_left_out(summary: SourceSummary) -> None:
    for reason, rows in summary.left_out.items():
        click.echo(f"left out {rows:,} events {reason}")


if __name__ == "__main__":
    run_cli(cli, "tidemark")
