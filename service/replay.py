"""``tidemark replay``: send a source's events through RecordEvents, as if they came in live.

Good for bringing a history in without a load, for trying a config out, and for proving that online equals offline. The
server must take events as old as those: start it with a large ``--max-lateness-hours``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
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
from tidemark.scoring import bearing

PER_CALL: Final = 1000
TIMEOUT_S: Final = 60.0
QUERY: Final = """SELECT customer_id, event_type, t, amount, duration_s, item_id, event_id FROM events ORDER BY t"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config")
@click.argument("target", metavar="HOST:PORT")
@click.option("--in-flight", default=4, show_default=True, type=click.IntRange(1, 64), help="Calls at a time.")
@click.option("--token", envvar="TIDEMARK_TOKEN", help="Of a caller with the scope events, or TIDEMARK_TOKEN.")
def replay(config: str, target: str, in_flight: int, token: str | None) -> None:
    """Send all events of CONFIG's source to the server at HOST:PORT, oldest first.

    Events with an event_id are counted once, however often they are sent; those without are counted each time.
    """
    try:
        metadata = bearing(token, target, secure=False)
    except ValueError as error:
        raise InputError(f"--token: {error}") from error
    settings = load_config(FeatureConfig, config)
    with OfflineStore(settings.source) as source, _progress() as progress:
        task = progress.add_task("sending events", total=source.summary.events)
        try:
            found = asyncio.run(
                _send(target, _requests(source), in_flight, lambda n: progress.advance(task, n), metadata)
            )
        except grpc.RpcError as error:
            raise InputError(f"{target}: {error.code().name}: {error.details()}") from error
    click.echo(f"accepted   {found.pop('accepted', 0):,}")
    click.echo(f"duplicates {found.pop('duplicates', 0):,}")
    for reason, number in found.most_common():
        click.echo(f"{number:,} times {reason}")


def _requests(source: OfflineStore) -> Iterator[bytes]:
    """Encoded RecordEventsRequests."""
    rows = source.connection.execute(QUERY)
    while some := rows.fetchmany(PER_CALL):
        yield events_pb2.RecordEventsRequest(events=map(_event, some)).SerializeToString()


def _event(row: tuple[Any, ...]) -> events_pb2.Event:
    customer_id, event_type, t, amount, duration_s, item_id, event_id = row
    event = events_pb2.Event(
        customer_id=customer_id,
        event_type=event_type,
        amount=amount,
        duration_s=duration_s,
        item_id=item_id or "",
        event_id=event_id or "",
    )
    event.event_time.FromNanoseconds(round(t * 1e9))
    return event


async def _send(target: str, requests: Iterator[bytes], in_flight: int, done: Any, metadata: Any) -> Counter[str]:
    """Send requests, so many at a time, and count what became of the events."""
    found: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/tidemark.v1.EventService/RecordEvents")

        async def work() -> None:
            for request in requests:
                encoded = await call(request, timeout=TIMEOUT_S, wait_for_ready=True, metadata=metadata)
                reply = events_pb2.RecordEventsResponse.FromString(encoded)
                found["accepted"] += reply.accepted
                found["duplicates"] += reply.duplicates
                found.update(one.reason for one in reply.rejected)
                found.update(one.reason for one in reply.guarded)
                done(reply.accepted + reply.duplicates + len(reply.rejected))

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return found


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
