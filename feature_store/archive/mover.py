"""From the log in Redis to the archive on disk: what the server accepted is moved, in order and exactly once."""

from __future__ import annotations

import logging
import threading
from typing import Final

from feature_store.archive.writer import Archive
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.store import LogReader

logger: Final = logging.getLogger("tidemark")

ENTRIES: Final = 10_000
"""Log entries that are moved together: bounds what is in memory."""


def move(log: LogReader, archive: Archive) -> int:
    """Move all that the log has now, and return how many entries it was.

    The archive has them on disk before the log forgets them, and knows its own position: to be killed in between costs
    nothing. What a load still has to see is forgotten later. InputError where this archive is not the one that the log
    was moved to before.
    """
    log.announce_archive()
    known = log.archived() or 0
    if archive.position < known:
        raise InputError(
            f"this archive ends at commit {archive.position:,}, and Redis says that {known:,} are archived: name the "
            "folder that the others are in"
        )
    last, moved = log.log_position(), 0
    if archive.position > last:
        raise InputError(
            f"this archive goes to commit {archive.position:,}, and Redis has made {last:,} only: it is "
            "another Redis's, or this one was emptied: name a new folder"
        )
    if archive.position > known:
        log.forget_log(known + 1, archive.position)
    while archive.position < last:
        first, end = archive.position + 1, min(archive.position + ENTRIES, last)
        entries = list(log.log(first, end))
        moved += len(entries)
        # Not every commit has something to log: the archive's position moves on all the same.
        archive.append(entries if entries and entries[-1][0] == end else [*entries, (end, b"[]")])
        log.forget_log(first, end)
    return moved


def run(log: LogReader, archive: Archive, every_s: float, stopping: threading.Event) -> None:
    """Move what there is every so many seconds until told to stop, and once more then; Redis may be away meanwhile."""
    last = False
    while not last:
        last = stopping.wait(every_s)
        try:
            if moved := move(log, archive):
                logger.info("archived %d commits, up to %d", moved, archive.position)
        except StoreUnavailableError as error:
            logger.warning("Redis does not answer (%s): trying again in %g s", error, every_s)
