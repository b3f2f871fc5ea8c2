"""In-memory databases whose SQL reads only the files that it is meant to read.

The SQL of a config is written by people, often by others than those who run it. DuckDB could read and write any file of
the user. So it has access to the folders of ``source.paths`` and to the files that the SQL names in plain text, its
configuration is locked, and a config's SQL must be a single SELECT, which writes nothing. Anyone who reads a config
therefore sees what it reads.

Extensions that reach other systems (``postgres_scan``, ``s3://``) need more: the environment variable
``TIDEMARK_UNRESTRICTED_SQL=true`` lifts the restriction for configs that are trusted.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import duckdb

from feature_store.errors import InputError
from feature_store.sql import literal

UNRESTRICTED: Final = "TIDEMARK_UNRESTRICTED_SQL"
HINT: Final = (
    "a config reads only folders of source.paths and files that its SQL names in plain text. If you trust it, set "
    f"{UNRESTRICTED}=true"
)
"""What to do if a file must not be read."""
TOKEN: Final = re.compile(r"""--[^\n]*|/\*.*?\*/|'(?P<text>(?:[^']|'')*)'|"(?P<name>(?:[^"]|"")*)\"""", re.DOTALL)
"""A comment, a text or a quoted name in SQL."""
PATTERN: Final = re.compile(r"[*?\[]")
"""Begins the part of a file name that is a pattern."""


def connect(
    folders: Iterable[Path] = (), queries: Iterable[str] = (), **options: str | bool | float | list[str]
) -> duckdb.DuckDBPyConnection:
    """An in-memory database, in UTC, with access to some files only.

    Args:
        folders: It reads and writes what is in them.
        queries: SQL, from which it takes the files that may be read as well.
        options: More options of DuckDB.
    """
    connection = duckdb.connect(":memory:", config=options)
    connection.execute("SET TimeZone = 'UTC'")
    if os.environ.get(UNRESTRICTED, "").lower() in ("1", "true", "yes"):
        return connection
    directories, files = {_absolute(folder) for folder in folders}, set[str]()
    for query in queries:
        for name in _files_in(query):
            if (pattern := PATTERN.search(name)) is None:
                files.add(name if "://" in name else _absolute(name))
            elif any(glob.iglob(name, recursive=True)):  # noqa: PTH207  # else it is a regular expression
                directories.add(_absolute(os.path.dirname(name[: pattern.start()])))  # noqa: PTH120  # "": this folder
    # DuckDB looks for a missing file in a folder of that name, and should say that it is missing.
    directories |= {name for name in files if "://" not in name and not Path(name).exists()}
    directories |= {os.path.realpath(name) for name in directories}
    directories |= {PATTERN.sub(r"[\g<0>]", name) for name in directories}  # as names of files are escaped
    files |= {os.path.realpath(name) for name in files if "://" not in name}
    for setting, values in (("allowed_directories", directories - {"/"}), ("allowed_paths", files)):
        connection.execute(f"SET {setting} = [{', '.join(map(literal, sorted(values)))}]")
    connection.execute("SET python_enable_replacements = false")  # variables of this process are not tables
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def check_is_select(connection: duckdb.DuckDBPyConnection, where: str, query: str) -> None:
    """Raise InputError unless SQL is a single SELECT; SQL with errors passes, because running it says which."""
    try:
        kinds = [statement.type for statement in connection.extract_statements(query)]
    except duckdb.Error:
        return
    if kinds != [duckdb.StatementType.SELECT]:
        raise InputError(f"{where}: the SQL must be a single SELECT, because it may not change anything")


def _files_in(query: str) -> Iterator[str]:
    """What may be names of files among the texts and quoted names of SQL."""
    for token in TOKEN.finditer(query):
        text = (token["text"] or "").replace("''", "'") or (token["name"] or "").replace('""', '"')
        if ("/" in text or "." in text) and "\0" not in text:
            yield text


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # without following links: DuckDB compares both
