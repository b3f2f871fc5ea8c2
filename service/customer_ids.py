"""``tidemark customer-ids``: the ids of the customers in Redis, one a line."""

from __future__ import annotations

from pathlib import Path

import click

from feature_store.bundles import bundle
from feature_store.cli import run_cli
from feature_store.errors import InputError
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateLayout


def stored_ids(url: str, registry: Path) -> list[str]:
    """The ids of all customers that have a state of the registry's current bundle, sorted.

    Raises:
        InputError: there is no bundle, or Redis holds no states of it.
        StoreUnavailableError: Redis does not answer.
    """
    try:
        layout = StateLayout(bundle.read(registry).manifest.features)
    except bundle.BundleError as error:
        raise InputError(str(error)) from error
    with StateWriter(url, layout) as redis:
        ids = sorted(redis.customer_ids())
    if not ids:
        raise InputError("Redis holds no customers of this registry's bundle: run 'tidemark load' first")
    return ids


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--redis", "url", required=True, metavar="URL", envvar="REDIS_URL", help="Redis, or REDIS_URL.")
@click.option(
    "--registry", required=True, type=click.Path(path_type=Path), help="Folder of bundles; the current one is used."
)
def customer_ids(url: str, registry: Path) -> None:
    """List the ids of all customers in Redis that the current bundle can score, one a line.

    For example as the input of a load test: tidemark customer-ids … | python -m tidemark.load HOST:PORT --ids -
    """
    click.echo("\n".join(stored_ids(url, registry)))


if __name__ == "__main__":
    run_cli(customer_ids, "tidemark customer-ids")
