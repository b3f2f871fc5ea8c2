"""The archive of live events: an append-only folder of Parquet files, kept by one process.

::

    entries of the log ─► replay ─► rows, erasures, aliases ─► new files ─► position.json ─► old files removed
                                                               (durable)    (the commit)

Whatever moment the process is killed at, the folder is as before an append or as after it, because only files that
``position.json`` names count. What it does not name is removed at the next opening.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import duckdb

from feature_store.archive.reader import (
    ALIAS_COLUMNS,
    COLUMNS,
    POSITION_FILE,
    Commit,
    EventFile,
    Snapshot,
    read_commit,
)
from feature_store.archive.replay import Aliases, Changes, Row, replay
from feature_store.errors import InputError
from feature_store.files import sync, write_atomically
from feature_store.sql import fill_table, literal, parquet_query

ROWS_PER_FILE: Final = 1_000_000

_DATA: Final = re.compile(r"(events|aliases)-\d{8,}\.parquet")
_UNFINISHED: Final = re.compile(r"position\.json\.tmp|\.position\.json\.[0-9a-f]{8}")
"""What a killed process may leave of ``position.json``; the first is the name of earlier releases."""
_ROW_COLUMNS: Final = {name: kind for name, kind in COLUMNS.items() if name != "event_time"}


class Archive:
    """An archive, open for writing. Closed by the end of a ``with`` block, and by an append that fails.

    rows_per_file: files are joined up to this many rows; the rows of one append are never split. InputError where
    another process has it open, or the folder is damaged or cannot be written.
    """

    def __init__(self, folder: Path, *, rows_per_file: int = ROWS_PER_FILE) -> None:
        self._folder: Final = folder
        self._rows_per_file: Final = rows_per_file
        with _clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # One thread, because cores are for the servers; no cache, because files are read once.
            self._connection: Final = duckdb.connect(
                ":memory:", config={"threads": 1, "enable_external_file_cache": False}
            )
            self._lock = _lock(folder)
            try:
                self._commit = self._recover()
                self._aliases = Aliases(Snapshot(folder, self._commit).aliases())
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> int:
        """The entry of the log up to which everything is in the folder; 0 where nothing is."""
        return self._commit.position

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Take ``(seq, JSON)`` entries, ascending, as one durable step; those up to ``position`` are there already.

        InputError where an entry is malformed (it names the seq, never the content) or the folder cannot be written.
        Then nothing of these entries is in the folder, unless its disk failed at the very end, and the archive is
        closed: open it anew, and what it says of its position is true.
        """
        if self._lock is None:
            raise ValueError("the archive is closed")
        new = [entry for entry in entries if entry[0] > self.position]
        if any(later[0] <= before[0] for before, later in pairwise(new)):
            raise ValueError("entries must be in ascending order of seq")
        if not new:
            return
        try:
            with _clear_errors(self._folder):
                self._write(new[-1][0], replay(new, self._aliases))
        except BaseException:
            self.close()  # what is in memory may be ahead of the folder
            raise

    def close(self) -> None:
        """Let others write. Nothing is pending: every append is durable when it returns."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, position: int, changes: Changes) -> None:
        commit, number = self._commit, self._commit.next_file
        erase = self._files_with(changes.erased)
        join = self._tail(len(changes.rows))
        events: list[EventFile] = []
        for file in commit.events[: len(commit.events) - len(join)]:
            if file.name not in erase:
                events.append(file)
            elif rows := self._write_events(number, [file], []):
                events.append(EventFile(name=_name("events", number), rows=rows))
            number += file.name in erase
        if changes.rows and (rows := self._write_events(number, join, changes.rows)):
            events.append(EventFile(name=_name("events", number), rows=rows))
            number += 1
        aliases = commit.aliases
        if self._aliases.changed:
            aliases = self._write_aliases(number)
            number += 1
        sync(self._folder)  # the files' names, before the commit that names them
        self._put(Commit(position=position, next_file=number, events=tuple(events), aliases=aliases))
        self._aliases.changed = False

    def _tail(self, rows: int) -> Sequence[EventFile]:
        """The newest files, to be joined with so many new rows into one file.

        A file is joined when as many rows have come after it, as bits carry in a counter. An event is then written
        again once per doubling, and below the files that are full there are at most as many as the counter has bits
        (20 for a million rows): from 10,000 events an append on, 7 times at most. To extend the newest file at every
        append would be 50 times on average; never to join, a file a second.
        """
        files = self._commit.events
        first = len(files)
        while rows and first and files[first - 1].rows <= rows and rows + files[first - 1].rows <= self._rows_per_file:
            first -= 1
            rows += files[first].rows
        return files[first:]

    def _files_with(self, ids: set[str]) -> set[str]:
        """Names of the files in which one of the customers is; the ids are kept for :meth:`_write_events`."""
        fill_table(self._connection, "erased", {"id": "VARCHAR"}, [(name,) for name in ids])
        files = Snapshot(self._folder, self._commit).files
        if not ids or not files:
            return set()
        names = ", ".join(literal(file) for file in files)
        found = self._connection.execute(
            f"SELECT DISTINCT filename FROM read_parquet([{names}], filename = true) WHERE customer_id IN (FROM erased)"
        )
        return {Path(path).name for (path,) in found.fetchall()}

    def _write_events(self, number: int, files: Sequence[EventFile], rows: Sequence[Row]) -> int:
        """Write what is not erased of files, and new rows, to one file; how many rows. Without any there is no file."""
        fill_table(self._connection, "new", _ROW_COLUMNS, rows)
        old = parquet_query([self._folder / file.name for file in files], COLUMNS)
        return self._copy(
            _name("events", number),
            f"""{old} {"WHERE customer_id NOT IN (FROM erased)" if files else ""}
                UNION ALL BY NAME SELECT *, make_timestamp(round(t * 1e6)::BIGINT) AS event_time FROM new""",
        )

    def _write_aliases(self, number: int) -> str | None:
        fill_table(self._connection, "aliases", ALIAS_COLUMNS, list(self._aliases.roots.items()))
        name = _name("aliases", number)
        return name if self._copy(name, "FROM aliases") else None

    def _copy(self, name: str, query: str) -> int:
        """Write a query's rows to a Parquet file that is on the disk when this returns; how many they are."""
        target = self._folder / name
        staging = target.with_name(f"{name}.tmp")
        copied = self._connection.execute(f"COPY ({query}) TO {literal(staging)} (FORMAT parquet, COMPRESSION zstd)")
        rows = int(copied.fetchall()[0][0])
        if not rows:
            staging.unlink()
            return 0
        sync(staging)
        staging.replace(target)
        return rows

    def _put(self, commit: Commit) -> None:
        """Make a commit what counts, and remove what does not count any more."""
        write_atomically(self._folder / POSITION_FILE, commit.model_dump_json() + "\n", durable=True)
        self._commit = commit
        self._sweep(commit)

    def _recover(self) -> Commit:
        """The commit that counts, in a folder that holds nothing else of ours; a first one in a new folder."""
        if not (self._folder / POSITION_FILE).exists():
            if any(_DATA.fullmatch(path.name) for path in self._folder.iterdir()):
                raise InputError(f"archive {self._folder}: {POSITION_FILE} is missing: restore it from a copy")
            self._put(Commit())
            sync(self._folder.parent)
        commit = read_commit(self._folder)
        for name in sorted(commit.names):
            if not (self._folder / name).is_file():
                raise InputError(f"archive {self._folder}: {name} is missing: restore it from a copy")
        sync(self._folder)  # a commit that was not yet durable is, before anybody relies on its position
        self._sweep(commit)
        return commit

    def _sweep(self, commit: Commit) -> None:
        for path in self._folder.iterdir():
            if _is_ours(path.name) and path.name not in commit.names:
                path.unlink()


def _is_ours(name: str) -> bool:
    return bool(_DATA.fullmatch(name.removesuffix(".tmp")) or _UNFINISHED.fullmatch(name))


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:08}.parquet"


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed, at the latest by the end of the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"archive {folder} is open for writing elsewhere: only one process may write it") from error
    return descriptor


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk or DuckDB says into one line; DuckDB's own words might hold a customer's."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        what = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise InputError(f"archive {folder} cannot be written: {what}") from error
