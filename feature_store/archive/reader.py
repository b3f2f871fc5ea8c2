"""Reads an archive of live events while another process may be writing it.

The folder holds Parquet files and a manifest, ``position.json``, which lists the files that belong to the archive and
the log position up to which they go. The manifest is replaced atomically, and files are never changed, only replaced by
files of new names. So a reader that has read the manifest sees a consistent snapshot as long as the files exist;
:func:`read_archive` starts again if one has been removed in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import duckdb
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_store.archive.replay import RECORD_MARKS
from feature_store.errors import InputError
from feature_store.online.epochs import Epoch
from feature_store.sql import parquet_query

POSITION_FILE: Final = "position.json"

COLUMNS: Final = {
    "seq": "BIGINT",
    "n": "INTEGER",
    "customer_id": "VARCHAR",
    "t": "DOUBLE",
    "event_time": "TIMESTAMP",
    "event_type": "VARCHAR",
    "amount": "DOUBLE",
    "duration_s": "DOUBLE",
    "item_id": "VARCHAR",
    "channel": "VARCHAR",
    "event_id": "VARCHAR",
    "text": "VARCHAR",
    "mark": "VARCHAR",
}
"""DuckDB types of the events' columns."""
COLUMN_MEANINGS: Final = {
    "seq": "Position of the log entry that the event was in.",
    "n": "Index of the event in its log entry.",
    "customer_id": "Id of the customer, as the event had it.",
    "t": "Exact time of the event in unix seconds.",
    "event_time": "The same time in UTC to the microsecond, without a time zone, for other tools.",
    "event_type": "Type of the event.",
    "amount": "Money; negative for a return.",
    "duration_s": "Duration in seconds.",
    "item_id": "Id of the item.",
    "channel": "Channel on which it happened.",
    "event_id": "Identity of the event among the customer's events.",
    "text": "Feedback in words. Kept only if the server has the setting `keep_text`.",
    "mark": "Empty, or why the event is not counted: `capped` if its customer had too many events. "
    "Rows that are no events have `consent`, `erased` or `merged`.",
}
# event_time has no zone because DuckDB converts times with a zone to Python only if pytz is installed.
ALIAS_COLUMNS: Final = {"alias": "VARCHAR", "root": "VARCHAR"}
ALIAS_MEANINGS: Final = {"alias": "An id that was merged.", "root": "Id of the customer that it belongs to."}

FIRST_OF_ID: Final = "(event_id IS NULL OR row_number() OVER (PARTITION BY customer_id, event_id ORDER BY seq, n) = 1)"
"""SQL condition on an event: it is the first one of its customer with this id."""

Result = TypeVar("Result")


class EventFile(BaseModel):
    """A Parquet file of events.

    Attributes:
        name: Name of the file.
        rows: Number of its rows.
    """

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^events-\d{8,}\.parquet$")]
    rows: Annotated[int, Field(gt=0)]


class Cut(NamedTuple):
    """Where Redis lost commits.

    Attributes:
        position: The last position that it kept.
        offset: What is added to later positions to get the ``seq`` of a row.
    """

    position: int
    offset: int


class ArchiveManifest(BaseModel):
    """``position.json``: the files that hold exactly the log up to ``position``.

    Attributes:
        format: Version of the format.
        position: Log position up to which the archive goes.
        events: Files of events, in the order of the log.
        next_file: A number that no file has had yet.
        aliases: File of the aliases; None if there are none.
        epochs: Epochs of the log up to ``position``: where each begins, and its name. Empty in format 1.
        cuts: Where Redis lost commits: the position after which it went on, and what is added from there on to a
            position to get the ``seq`` of a row.
        erasure_key: Key of the hashes of erased customers, in hexadecimal; empty in format 1.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1, 2] = 1
    position: Annotated[int, Field(ge=0)] = 0
    next_file: Annotated[int, Field(ge=1)] = 1
    events: tuple[EventFile, ...] = ()
    aliases: Annotated[str | None, Field(pattern=r"^aliases-\d{8,}\.parquet$")] = None
    epochs: tuple[Epoch, ...] = ()
    cuts: tuple[Cut, ...] = ()
    erasure_key: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")] = ""

    @property
    def last_seq(self) -> int:
        """The largest ``seq`` that a row can have."""
        return self.position + (self.cuts[-1].offset if self.cuts else 0)

    def offset_at(self, position: int) -> int:
        """What is added to a position of the log to get the ``seq`` of its rows."""
        return next((cut.offset for cut in reversed(self.cuts) if position > cut.position), 0)

    def in_log(self) -> str:
        """SQL condition on a row: Redis has not lost the commit it is from."""
        starts = [Cut(0, 0), *self.cuts]
        ends = [*(cut.position for cut in self.cuts), self.position]
        ranges = [
            f"seq BETWEEN {cut.position + cut.offset + 1} AND {end + cut.offset}"
            for cut, end in zip(starts, ends, strict=True)
        ]
        return f"({' OR '.join(ranges)})"

    @property
    def names(self) -> set[str]:
        """Names of all files that belong to the archive."""
        return {file.name for file in self.events} | ({self.aliases} if self.aliases else set())


@dataclass(frozen=True)
class ArchiveSnapshot:
    """The archive as of one manifest, for use inside :func:`read_archive`."""

    folder: Path
    manifest: ArchiveManifest

    @property
    def position(self) -> int:
        """The log position up to which the archive goes."""
        return self.manifest.position

    @property
    def files(self) -> list[Path]:
        """Parquet files of events, newest first: a writer soon replaces the newest, small ones by larger ones."""
        return [self.folder / file.name for file in reversed(self.manifest.events)]

    @property
    def rows(self) -> int:
        """Number of rows, marked events and records included."""
        return sum(file.rows for file in self.manifest.events)

    @property
    def events_sql(self) -> str:
        """A query for the events (COLUMNS), in no order, with ids as they were sent and marked events included."""
        query = f"FROM ({parquet_query(self.files, COLUMNS)}) WHERE mark NOT IN {RECORD_MARKS}"
        # A Redis that lost commits accepts an event again if it is sent again, although it is archived.
        return f"{query} QUALIFY {FIRST_OF_ID}" if self.manifest.cuts else query

    def records_sql(self, mark: str) -> str:
        """A query for the rows of one of RECORD_MARKS, in no order."""
        return f"FROM ({parquet_query(self.files, COLUMNS)}) WHERE mark = '{mark}'"

    @property
    def aliases_sql(self) -> str:
        """A query for the aliases (ALIAS_COLUMNS), each alias once."""
        return parquet_query([self.folder / self.manifest.aliases] if self.manifest.aliases else [], ALIAS_COLUMNS)

    def aliases(self, connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """Customer id by alias; a customer id is never an alias."""
        if self.manifest.aliases is None:
            return {}
        return dict(connection.execute(self.aliases_sql).fetchall())


def read_archive(folder: Path, use: Callable[[ArchiveSnapshot], Result]) -> Result:
    """What ``use`` returns for the archive, without blocking its writer.

    Args:
        folder: The archive.
        use: Called again with a newer snapshot if a file was replaced while it was being read.

    Raises:
        InputError: There is no archive, or it is damaged.
    """
    manifest = read_archive_manifest(folder)
    while True:
        try:
            return use(ArchiveSnapshot(folder, manifest))
        except duckdb.Error as error:
            newer = read_archive_manifest(folder)
            if newer == manifest:
                what = str(error).splitlines()[0]
                raise InputError(f"archive {folder} cannot be read: {what}") from error
            manifest = newer


def read_archive_manifest(folder: Path) -> ArchiveManifest:
    """The newest manifest of an archive; InputError if there is none."""
    try:
        return ArchiveManifest.model_validate_json((folder / POSITION_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no archive: name the folder that live events are archived in") from error
    except OSError as error:
        raise InputError(f"archive {folder} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise InputError(
            f"archive {folder}: {POSITION_FILE} is damaged or was written by another release: restore it from a copy"
        ) from error


def holds_archive(folder: Path) -> bool:
    """Whether there is an archive in a folder."""
    return (folder / POSITION_FILE).exists()
