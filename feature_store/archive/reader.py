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
from typing import Annotated, Final, Literal, TypeVar

import duckdb
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_store.errors import InputError
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
"""DuckDB types of the events' columns.

``seq`` and ``n`` are the position of the log entry and the index in it. ``t`` is the exact time in unix seconds;
``event_time`` is the same in UTC to the microsecond, for other tools. It has no time zone, because DuckDB converts
times with a zone to Python only if pytz is installed."""
ALIAS_COLUMNS: Final = {"alias": "VARCHAR", "root": "VARCHAR"}

Result = TypeVar("Result")


class EventFile(BaseModel):
    """A Parquet file of events and its number of rows."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^events-\d{8,}\.parquet$")]
    rows: Annotated[int, Field(gt=0)]


class ArchiveManifest(BaseModel):
    """``position.json``: the files that hold exactly the log up to ``position``.

    Attributes:
        events: Files of events, in the order of the log.
        next_file: A number that no file has had yet.
        aliases: File of the aliases; None if there are none.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    position: Annotated[int, Field(ge=0)] = 0
    next_file: Annotated[int, Field(ge=1)] = 1
    events: tuple[EventFile, ...] = ()
    aliases: Annotated[str | None, Field(pattern=r"^aliases-\d{8,}\.parquet$")] = None

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
        """Number of events, marked ones included."""
        return sum(file.rows for file in self.manifest.events)

    @property
    def events_sql(self) -> str:
        """A query for the events (COLUMNS), in no order, with ids as they were sent and marked events included."""
        return parquet_query(self.files, COLUMNS)

    @property
    def aliases_sql(self) -> str:
        """A query for the aliases (ALIAS_COLUMNS), each alias once."""
        return parquet_query([self.folder / self.manifest.aliases] if self.manifest.aliases else [], ALIAS_COLUMNS)

    def aliases(self) -> dict[str, str]:
        """Customer id by alias; a customer id is never an alias."""
        if self.manifest.aliases is None:
            return {}
        with duckdb.connect(":memory:") as connection:
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
