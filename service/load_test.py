"""``tidemark load-test``: the load test of the client, which can also ask for the customers in Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feature_store.errors import InputError
from tidemark.load.cli import load
from tidemark.load.errors import InputError as LoadInputError
from tidemark.load.ids import MAX_IDS, IdSource

OPTIONS = [
    click.Option(
        ["--redis", "url"],
        metavar="URL",
        envvar="REDIS_URL",
        help="Ask for customers in this Redis; needs --registry.",
    ),
    click.Option(
        ["--registry"],
        type=click.Path(path_type=Path),
        help="Folder of bundles; the customers are those that the current one can score.",
    ),
]


@click.command(params=[*load.params, *OPTIONS], help=load.help, context_settings=load.context_settings)
@click.pass_context
def load_test(
    context: click.Context, /, ids_file: Path | None, url: str | None, registry: Path | None, **options: Any
) -> None:
    """Run the client's load test on ids from a file or from Redis."""
    try:
        ids = None if ids_file is not None else _stored(url, registry)
        context.invoke(load, ids_file=ids_file, ids=ids, **options)
    except LoadInputError as error:
        raise InputError(str(error)) from error


def _stored(url: str | None, registry: Path | None) -> IdSource:
    if url is None or registry is None:
        raise InputError("there are no customers to ask for: add --redis and --registry, or --ids")
    from service.customer_ids import stored_ids  # noqa: PLC0415  # half of the start-up time, and not always needed

    ids = stored_ids(url, registry)[:MAX_IDS]
    return IdSource(ids, f"{len(ids):,} customers in Redis")
