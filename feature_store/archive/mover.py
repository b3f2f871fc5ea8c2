"""Moves log entries from Redis to the archive, in order and exactly once."""

from __future__ import annotations

import logging
import threading
from typing import Final

from feature_store.archive.writer import ArchiveWriter
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.event_log import EventLog

logger: Final = logging.getLogger("tidemark")

MAX_ENTRIES: Final = 10_000
"""Log entries moved at a time, to bound the memory."""


def move(log: EventLog, archive: ArchiveWriter) -> int:
    """Move all entries that are in the log now.

    The archive has them on disk before they are removed from the log, and knows its own position, so killing the
    process at any moment loses and duplicates nothing. Entries that a running load still needs are removed later.

    Returns:
        The number of entries moved.

    Raises:
        InputError: This is not the archive that earlier entries were moved to, or entries are missing.
        StoreUnavailableError: Redis does not answer.
    """
    log.announce_archive()
    archived = log.archived() or 0
    if archive.position < archived:
        raise InputError(
            f"this archive ends at commit {archive.position:,}, but {archived:,} commits are archived: name the folder "
            "of the archive that has them"
        )
    last, moved = log.position(), 0
    if archive.position > last:
        raise InputError(
            f"this archive goes to commit {archive.position:,}, but Redis has made only {last:,}: it belongs to "
            "another Redis, or this Redis was emptied: name a new folder"
        )
    if archive.position > archived:
        log.forget(archived + 1, archive.position)
    while archive.position < last:
        first, end = archive.position + 1, min(archive.position + MAX_ENTRIES, last)
        entries = list(log.entries(first, end))
        moved += len(entries)
        # Earlier releases wrote no entry for some commits: an empty one moves the archive's position past them.
        archive.append(entries if entries and entries[-1][0] == end else [*entries, (end, b"[]")])
        log.forget(first, end)
    return moved


def move_until_stopped(log: EventLog, archive: ArchiveWriter, every_s: float, stopping: threading.Event) -> None:
    """Move entries every ``every_s`` seconds until ``stopping`` is set, then once more; Redis may fail meanwhile."""
    if removed := log.remove_archived():
        logger.info("removed %d entries that were archived before", removed)
    is_last = False
    while not is_last:
        is_last = stopping.wait(every_s)
        try:
            if moved := move(log, archive):
                logger.info("archived %d commits, up to %d", moved, archive.position)
        except StoreUnavailableError as error:
            logger.warning("Redis does not answer (%s): trying again in %g s", error, every_s)
