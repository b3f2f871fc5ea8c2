"""Moves log entries from Redis to the archive, in order and exactly once."""

from __future__ import annotations

import logging
import threading
from typing import Final

from feature_store.archive.recovery import earlier_records, restore
from feature_store.archive.writer import ArchiveWriter
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.epochs import Epoch, common_position
from feature_store.online.event_log import EventLog

logger: Final = logging.getLogger("tidemark")

MAX_ENTRIES: Final = 10_000
"""Log entries moved at a time, to bound the memory."""


def move(log: EventLog, archive: ArchiveWriter, *, new_redis: bool = False) -> int:
    """Move all entries that are in the log now.

    The archive has them on disk before they are removed from the log, and knows its own position, so killing the
    process at any moment loses and duplicates nothing. Entries that a running load still needs are removed later.

    If Redis has lost commits that are archived, the archive goes on with what Redis has made since, and erasures and
    consents that were lost are restored in Redis.

    Args:
        log: The log.
        archive: Where to move them.
        new_redis: Go on although this Redis has no commit in common with the archive.

    Returns:
        The number of entries moved.

    Raises:
        InputError: This is not the archive that earlier entries were moved to, or entries are missing.
        StoreUnavailableError: Redis does not answer.
    """
    log.announce_archive()
    epochs, last, moved = log.epochs(), log.position(), 0
    _recover(log, archive, epochs, last, new_redis=new_redis)
    archived = log.archived() or 0
    if archive.position < archived:
        raise InputError(
            f"this archive ends at commit {archive.position:,}, but {archived:,} commits are archived: name the folder "
            "of the archive that has them"
        )
    archive.follow(epochs)
    if not archive.manifest.erasure_key:
        archive.begin(log.erasure_key(), earlier_records(log.client, archive.position))
    if archive.position > archived:
        log.forget(archived + 1, archive.position)
    while archive.position < last:
        first, end = archive.position + 1, min(archive.position + MAX_ENTRIES, last)
        entries = list(log.entries(first, end))
        if log.epochs() != epochs or log.position() < end:  # Redis was started again, or has lost commits, meanwhile
            return moved + move(log, archive, new_redis=new_redis)
        moved += len(entries)
        # Earlier releases wrote no entry for some commits: an empty one moves the archive's position past them.
        archive.append(entries if entries and entries[-1][0] == end else [*entries, (end, b"[]")])
        log.forget(first, end)
    return moved


def _recover(log: EventLog, archive: ArchiveWriter, epochs: list[Epoch], last: int, *, new_redis: bool) -> None:
    """Go on after the last commit that Redis and the archive have in common, if Redis has lost some.

    Raises:
        InputError: They have none in common.
    """
    known = archive.manifest.epochs
    # Format 1 of the archive has no epochs.
    common = common_position(known, archive.position, epochs, last) if known else min(archive.position, last)
    if common == archive.position:
        return
    lost = f"{common + 1:,} to {archive.position:,}"
    if not common and not new_redis:
        raise InputError(
            f"this archive goes to commit {archive.position:,}, and Redis has none of its commits: it belongs to "
            "another Redis, or this Redis was emptied: name a new folder, or go on with this Redis with --new-redis"
        )
    logger.warning(
        "Redis has lost the commits %s, which are archived: erasures and consents are restored now, states by the next "
        "load, and merges have to be repeated",
        lost,
    )
    restore(log.client, log, archive.snapshot, common)
    archive.cut(common)


def move_until_stopped(
    log: EventLog, archive: ArchiveWriter, every_s: float, stopping: threading.Event, *, new_redis: bool = False
) -> None:
    """Move entries every ``every_s`` seconds until ``stopping`` is set, then once more; Redis may fail meanwhile."""
    if removed := log.remove_archived():
        logger.info("removed %d entries that were archived before", removed)
    is_last = False
    while not is_last:
        is_last = stopping.wait(every_s)
        try:
            log.client.check()
            if moved := move(log, archive, new_redis=new_redis):
                logger.info("archived %d commits, up to %d", moved, archive.position)
        except StoreUnavailableError as error:
            logger.warning("Redis does not answer (%s): trying again in %g s", error, every_s)
