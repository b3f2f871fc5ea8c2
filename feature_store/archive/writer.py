"""Writes the archive of live events: an append-only folder of Parquet files, written by one process.

::

    log entries ─► replay ─► rows, erasures, aliases ─► new files ─► position.json ─► old files removed
                                                        (durable)    (atomic)

If the process is killed at any moment, the archive is as before an append or as after it, because only the files that
the manifest ``position.json`` names belong to it. Other files of the archiver are removed when it opens the folder.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import duckdb

from feature_store.archive.reader import (
    ALIAS_COLUMNS,
    COLUMNS,
    POSITION_FILE,
    ArchiveManifest,
    ArchiveSnapshot,
    Cut,
    EventFile,
    read_archive_manifest,
)
from feature_store.archive.replay import MERGED, Aliases, Changes, EventRow, merge_record, replay
from feature_store.errors import InputError
from feature_store.files import private_folder, sync, write_atomically
from feature_store.online.epochs import Epoch
from feature_store.sandbox import connect
from feature_store.sql import fill_table, literal, parquet_query

ROWS_PER_FILE: Final = 1_000_000

_DATA: Final = re.compile(r"(events|aliases)-\d{8,}\.parquet")
_UNFINISHED: Final = re.compile(r"position\.json\.tmp|\.position\.json\.[0-9a-f]{8}")
"""What a killed process may leave of ``position.json``; the first is the name of earlier releases."""
_ROW_COLUMNS: Final = {name: kind for name, kind in COLUMNS.items() if name != "event_time"}


class ArchiveWriter:
    """An archive open for writing. The end of a ``with`` block closes it, and so does an append that fails."""

    def __init__(self, folder: Path, *, rows_per_file: int = ROWS_PER_FILE) -> None:
        """Open an archive, or create one.

        Args:
            folder: Where it is.
            rows_per_file: Files are joined up to this size; rows of one append are never split.

        Raises:
            InputError: Another process has it open, it is damaged, the folder cannot be written, or every user of the
                machine has access to it.
        """
        self._folder: Final = folder
        self._rows_per_file: Final = rows_per_file
        self._records: list[EventRow] = []
        with _clear_errors(folder):
            self._file_mode: Final = private_folder(folder)
            # One thread, to leave the cores to the servers; no cache, because files are read once.
            self._connection: Final = connect([folder], threads=1, enable_external_file_cache=False)
            self._lock = _lock(folder)
            try:
                self._manifest = self._recover()
                self._aliases = Aliases(ArchiveSnapshot(folder, self._manifest).aliases(self._connection))
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> int:
        """The log position up to which the archive goes; 0 if it is empty."""
        return self._manifest.position

    @property
    def manifest(self) -> ArchiveManifest:
        """What the archive consists of."""
        return self._manifest

    @property
    def snapshot(self) -> ArchiveSnapshot:
        """The archive as it is now."""
        return ArchiveSnapshot(self._folder, self._manifest)

    def follow(self, epochs: Sequence[Epoch]) -> None:
        """Note the epochs of the log that entries are from; the next append stores them."""
        self._manifest = self._manifest.model_copy(update={"epochs": tuple(epochs)})

    def begin(self, erasure_key: bytes, records: Sequence[EventRow]) -> None:
        """Note what Redis knows from before there was an archive, or before its format 2; the next append stores it.

        Args:
            erasure_key: Key of the hashes of erased customers.
            records: Rows of erasures and consents.
        """
        self._manifest = self._manifest.model_copy(update={"erasure_key": erasure_key.hex()})
        self._records = list(records)

    def cut(self, position: int) -> None:
        """Go on after a position that was archived before, because Redis has lost the commits after it.

        Their events stay. Their merges are undone, because Redis knows the customers apart.

        Raises:
            InputError: The folder cannot be written.
        """
        with _clear_errors(self._folder):
            manifest = self._manifest
            cuts = tuple(cut for cut in manifest.cuts if cut.position < position)
            cut = Cut(position, manifest.last_seq - position)
            manifest = manifest.model_copy(update={"position": position, "cuts": (*cuts, cut)})
            query = f"{self.snapshot.records_sql(MERGED)} AND {manifest.in_log()} ORDER BY seq, n"
            aliases = Aliases({}) if manifest.format > 1 else self._aliases
            for alias, root in self._connection.execute(f"SELECT customer_id, text {query}").fetchall():
                with suppress(ValueError):  # one of the two has been erased since
                    aliases.merge(alias, root)
            self._manifest, self._aliases = manifest, aliases
            self._aliases.changed = True
            self._write(position, Changes([], set()))

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Add log entries in one durable step. Entries up to ``position`` are in the archive already and are skipped.

        After an error none of the entries is in the archive, unless the disk failed at the very end, and the archive is
        closed. Open it again to learn its position.

        Args:
            entries: (position, JSON), ascending.

        Raises:
            InputError: An entry is malformed, or the folder cannot be written. The message never contains an entry.
        """
        if self._lock is None:
            raise ValueError("the archive is closed")
        new = [entry for entry in entries if entry[0] > self.position]
        if any(later[0] <= before[0] for before, later in pairwise(new)):
            raise ValueError("entries must be in ascending order of position")
        if not new:
            return
        try:
            with _clear_errors(self._folder):
                self._write(new[-1][0], self._replayed(new))
        except BaseException:
            self.close()  # the state in memory may be ahead of the folder
            raise

    def close(self) -> None:
        """Release the folder. Nothing is pending: every append is durable when it returns."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _replayed(self, entries: Sequence[tuple[int, bytes]]) -> Changes:
        manifest = self._manifest
        known = [] if manifest.format > 1 else list(self._aliases.roots.items())
        key, offset = bytes.fromhex(manifest.erasure_key), manifest.offset_at(manifest.position + 1)
        changes = replay(entries, self._aliases, erasure_key=key, offset=offset)
        # Format 1 has no rows of merges.
        earlier = [*(merge_record(manifest.position, alias, root) for alias, root in known), *self._records]
        changes.records[:0] = [row for row in earlier if row.event.customer_id not in changes.erased]
        return changes

    def _write(self, position: int, changes: Changes) -> None:
        manifest, number = self._manifest, self._manifest.next_file
        erase = self._files_with(changes.erased)
        added = [*changes.rows, *changes.records]
        join = self._tail(len(added))
        events: list[EventFile] = []
        for file in manifest.events[: len(manifest.events) - len(join)]:
            if file.name not in erase:
                events.append(file)
            elif rows := self._write_events(number, [file], []):
                events.append(EventFile(name=_name("events", number), rows=rows))
            number += file.name in erase
        if added and (rows := self._write_events(number, join, added)):
            events.append(EventFile(name=_name("events", number), rows=rows))
            number += 1
        aliases = manifest.aliases
        if self._aliases.changed:
            aliases = self._write_aliases(number)
            number += 1
        sync(self._folder)  # the files' names, before the manifest that refers to them
        changed = {"position": position, "next_file": number, "events": tuple(events), "aliases": aliases}
        self._put(manifest.model_copy(update={**changed, "format": 2}))
        self._aliases.changed = False

    def _tail(self, rows: int) -> Sequence[EventFile]:
        """The newest files, which are joined with ``rows`` new rows into one file.

        A file is joined once as many rows have followed it as it has itself, like carrying in a binary counter. So an
        event is rewritten once per doubling, and there are at most log2(rows_per_file) files that are not full (20 for
        a million rows): with 10,000 events per append, an event is rewritten at most 7 times. Extending the newest file
        at every append would rewrite an event 50 times on average; never joining would create a file per second.
        """
        files = self._manifest.events
        first = len(files)
        while rows and first and files[first - 1].rows <= rows and rows + files[first - 1].rows <= self._rows_per_file:
            first -= 1
            rows += files[first].rows
        return files[first:]

    def _files_with(self, ids: set[str]) -> set[str]:
        """Names of the files that contain one of the customers; also fills ``erased`` for :meth:`_write_events`."""
        fill_table(self._connection, "erased", {"id": "VARCHAR"}, [(name,) for name in ids])
        files = ArchiveSnapshot(self._folder, self._manifest).files
        if not ids or not files:
            return set()
        names = ", ".join(literal(file) for file in files)
        rows = self._connection.execute(
            f"SELECT DISTINCT filename FROM read_parquet([{names}], filename = true) WHERE customer_id IN (FROM erased)"
        )
        return {Path(path).name for (path,) in rows.fetchall()}

    def _write_events(self, number: int, files: Sequence[EventFile], rows: Sequence[EventRow]) -> int:
        """Write the rows of files that are not erased, and new rows, to one file; returns their number (0: no file)."""
        fill_table(self._connection, "new", _ROW_COLUMNS, [row.values for row in rows])
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
        """Write a query's rows to a Parquet file that is on disk when this returns; the number of rows."""
        target = self._folder / name
        staging = target.with_name(f"{name}.tmp")
        copied = self._connection.execute(f"COPY ({query}) TO {literal(staging)} (FORMAT parquet, COMPRESSION zstd)")
        rows = int(copied.fetchall()[0][0])
        if not rows:
            staging.unlink()
            return 0
        staging.chmod(self._file_mode)
        sync(staging)
        staging.replace(target)
        return rows

    def _put(self, manifest: ArchiveManifest) -> None:
        """Make a manifest the current one, and remove the files that it does not name."""
        content = manifest.model_dump_json() + "\n"
        write_atomically(self._folder / POSITION_FILE, content, durable=True, mode=self._file_mode)
        self._manifest, self._records = manifest, []
        self._sweep(manifest)

    def _recover(self) -> ArchiveManifest:
        """The current manifest, after removing files that it does not name; an empty one for a new folder."""
        if not (self._folder / POSITION_FILE).exists():
            if any(_DATA.fullmatch(path.name) for path in self._folder.iterdir()):
                raise InputError(f"archive {self._folder}: {POSITION_FILE} is missing: restore it from a copy")
            self._put(ArchiveManifest())
            sync(self._folder.parent)
        manifest = read_archive_manifest(self._folder)
        for name in sorted(manifest.names):
            if not (self._folder / name).is_file():
                raise InputError(f"archive {self._folder}: {name} is missing: restore it from a copy")
        sync(self._folder)  # a manifest that was not yet durable becomes so before anybody relies on its position
        self._sweep(manifest)
        return manifest

    def _sweep(self, manifest: ArchiveManifest) -> None:
        for path in self._folder.iterdir():
            if _is_ours(path.name) and path.name not in manifest.names:
                path.unlink()


def _is_ours(name: str) -> bool:
    return bool(_DATA.fullmatch(name.removesuffix(".tmp")) or _UNFINISHED.fullmatch(name))


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:08}.parquet"


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed, or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"archive {folder} is open for writing in another process: only one may write it") from error
    return descriptor


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk and of DuckDB into an InputError; DuckDB's own message might contain customer data."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        what = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise InputError(f"archive {folder} cannot be written: {what}") from error
