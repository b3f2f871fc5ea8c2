"""``tidemark replay``: send the events of a source through RecordEvents, as if they came in live.

Use it to bring in a history without a load, to try a config, or to check that online equals offline. The server must
accept events that old: start it with a large ``--max-lateness-hours``.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import grpc
import grpc.aio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tidemark.v1 import events_pb2

from feature_store.cli import run_cli
from feature_store.config import FeatureConfig, load_config
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from tidemark.channel import auth_metadata
from tidemark.messages.times import duration

EVENTS_PER_CALL: Final = 1000
TIMEOUT_S: Final = 60.0
QUERY: Final = """SELECT customer_id, event_type, t, amount, duration_s, item_id, event_id FROM events ORDER BY t"""

Metadata = Sequence[tuple[str, str]] | None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config")
@click.argument("target", metavar="HOST:PORT")
@click.option("--in-flight", default=4, show_default=True, type=click.IntRange(1, 64), help="Concurrent calls.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the token of a caller with the scope events [default: the token in TIDEMARK_TOKEN, if any].",
)
def replay(config: str, target: str, in_flight: int, token_file: Path | None) -> None:
    """Send all events of CONFIG's source to the server at HOST:PORT, oldest first.

    Events with an event_id are counted once, however often they are sent; those without are counted each time.
    """
    token = os.environ.get("TIDEMARK_TOKEN") if token_file is None else token_file.read_text().strip()
    try:
        metadata = auth_metadata(token, target, secure=False)
    except ValueError as error:
        raise InputError(f"{'TIDEMARK_TOKEN' if token_file is None else '--token-file'}: {error}") from error
    settings = load_config(FeatureConfig, config)
    with OfflineStore(settings.source) as source, _progress() as progress:
        task = progress.add_task("sending events", total=source.summary.events)
        try:
            counts = asyncio.run(
                _send(target, _requests(source), in_flight, lambda n: progress.advance(task, n), metadata)
            )
        except grpc.RpcError as error:
            raise InputError(f"{target}: {error.code().name}: {error.details()}") from error
    click.echo(f"accepted   {counts.pop('accepted', 0):,}")
    click.echo(f"duplicates {counts.pop('duplicates', 0):,}")
    for reason, number in counts.most_common():
        click.echo(f"{number:,} times {reason}")


def _requests(source: OfflineStore) -> Iterator[bytes]:
    """Encoded RecordEventsRequests with all events of the source."""
    cursor = source.connection.execute(QUERY)
    while rows := cursor.fetchmany(EVENTS_PER_CALL):
        yield events_pb2.RecordEventsRequest(events=map(_event, rows)).SerializeToString()


def _event(row: tuple[Any, ...]) -> events_pb2.Event:
    customer_id, event_type, t, amount, duration_s, item_id, event_id = row
    event = events_pb2.Event(
        customer_id=customer_id,
        event_type=event_type,
        amount=amount,
        duration=None if duration_s is None else duration(duration_s),
        item_id=item_id or "",
        event_id=event_id or "",
    )
    event.event_time.FromNanoseconds(round(t * 1e9))
    return event


async def _send(
    target: str, requests: Iterator[bytes], in_flight: int, on_progress: Callable[[int], None], metadata: Metadata
) -> Counter[str]:
    """Send requests, ``in_flight`` at a time, and count events by what became of them."""
    counts: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target) as channel:
        record: Any = channel.unary_unary("/tidemark.v1.EventService/RecordEvents")

        async def worker() -> None:
            for request in requests:
                encoded = await record(request, timeout=TIMEOUT_S, wait_for_ready=True, metadata=metadata)
                reply = events_pb2.RecordEventsResponse.FromString(encoded)
                counts["accepted"] += reply.accepted
                counts["duplicates"] += reply.duplicates
                counts.update(event.reason for event in reply.rejected)
                counts.update(event.reason for event in reply.guarded)
                on_progress(reply.accepted + reply.duplicates + len(reply.rejected))

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return counts


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    run_cli(replay, "tidemark replay")
