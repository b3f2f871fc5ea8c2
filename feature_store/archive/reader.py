"""Reading an archive of live events, beside the process that writes it.

A folder holds Parquet files and ``position.json``, which says which of them count and up to which entry of the log they
go. It is replaced in one step; files are never changed, only replaced by others of new names. So whoever has read
``position.json`` has a consistent picture, for as long as its files are there: :func:`read_archive` begins anew where
one of them has gone meanwhile.
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
"""Of the events: ``seq`` and ``n`` are the entry of the log and the index in it, ``t`` the exact unix seconds of which
``event_time`` is the microsecond in UTC, for those who read the files with other tools. It names no zone, because
DuckDB hands times with a zone to Python only where pytz is installed."""
ALIAS_COLUMNS: Final = {"alias": "VARCHAR", "root": "VARCHAR"}

Result = TypeVar("Result")


class EventFile(BaseModel):
    """A Parquet file of events and its number of rows."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^events-\d{8,}\.parquet$")]
    rows: Annotated[int, Field(gt=0)]


class Commit(BaseModel):
    """``position.json``: everything up to entry ``position`` is in these files, and nothing else is.

    events: in the order of the log; next_file: a number that no file has had.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    position: Annotated[int, Field(ge=0)] = 0
    next_file: Annotated[int, Field(ge=1)] = 1
    events: tuple[EventFile, ...] = ()
    aliases: Annotated[str | None, Field(pattern=r"^aliases-\d{8,}\.parquet$")] = None

    @property
    def names(self) -> set[str]:
        """Names of all files that count."""
        return {file.name for file in self.events} | ({self.aliases} if self.aliases else set())


@dataclass(frozen=True)
class Snapshot:
    """An archive as of one commit, inside :func:`read_archive`."""

    folder: Path
    commit: Commit

    @property
    def position(self) -> int:
        """The entry of the log up to which everything is there."""
        return self.commit.position

    @property
    def files(self) -> list[Path]:
        """Parquet files of events, newest first: these are the small ones, which a writer soon replaces by larger."""
        return [self.folder / file.name for file in reversed(self.commit.events)]

    @property
    def rows(self) -> int:
        """How many events there are, marked ones included."""
        return sum(file.rows for file in self.commit.events)

    @property
    def events_sql(self) -> str:
        """DuckDB query for the events, with COLUMNS, in no order; ids as they were sent, marked events included."""
        return parquet_query(self.files, COLUMNS)

    @property
    def aliases_sql(self) -> str:
        """DuckDB query for the aliases, with ALIAS_COLUMNS, each alias once."""
        return parquet_query([self.folder / self.commit.aliases] if self.commit.aliases else [], ALIAS_COLUMNS)

    def aliases(self) -> dict[str, str]:
        """Root by alias; a root is never an alias."""
        if self.commit.aliases is None:
            return {}
        with duckdb.connect(":memory:") as connection:
            return dict(connection.execute(self.aliases_sql).fetchall())


def read_archive(folder: Path, use: Callable[[Snapshot], Result]) -> Result:
    """What ``use`` makes of the archive, without holding up its writer.

    Where a file that is being read has been replaced, ``use`` is called again with the new snapshot: it must bear that.
    InputError where there is no archive, or one that is damaged.
    """
    commit = read_commit(folder)
    while True:
        try:
            return use(Snapshot(folder, commit))
        except duckdb.Error as error:
            newer = read_commit(folder)
            if newer == commit:
                what = str(error).splitlines()[0]
                raise InputError(f"archive {folder} cannot be read: {what}") from error
            commit = newer


def read_commit(folder: Path) -> Commit:
    """The archive's newest commit; InputError where there is none."""
    try:
        return Commit.model_validate_json((folder / POSITION_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no archive: name the folder that live events are archived in") from error
    except OSError as error:
        raise InputError(f"archive {folder} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise InputError(
            f"archive {folder}: {POSITION_FILE} is damaged or of another release: restore it from a copy"
        ) from error


def holds_archive(folder: Path) -> bool:
    """Whether there is an archive in a folder."""
    return (folder / POSITION_FILE).exists()
