"""Reading a user's table (a CSV, Parquet or JSON file, or a SELECT) and the SQL for it in a config."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from feature_store.errors import InputError
from feature_store.sandbox import check_is_select, connect
from feature_store.sql import escaped, identifier, literal

READERS: Final = {
    ".parquet": "read_parquet",
    ".pq": "read_parquet",
    ".json": "read_json",
    ".jsonl": "read_json",
    ".ndjson": "read_json",
}
"""DuckDB's reader by file extension; every other file is read as CSV with any delimiter."""

SHEETS: Final = (".xlsx", ".xls", ".ods")

CSV_ATTEMPTS: Final = ("", ", sample_size = -1", ", encoding = 'latin-1'", ", encoding = 'latin-1', sample_size = -1")
"""Options to try in turn: types detected from the first rows, from all rows, and the same for files not in UTF-8."""

QUERY: Final = re.compile(r"\s*(SELECT|FROM|WITH)\b", re.IGNORECASE)

WHOLE: Final = ("SMALLINT", "INTEGER", "BIGINT", "HUGEINT")


@dataclass(frozen=True)
class InputTable:
    """A user's table that has been read.

    Attributes:
        sql: What follows FROM in a config, with folders as ``${name}``.
        paths: Those folders by name, relative to the config.
        name: The connection's table that holds it.
        columns: DuckDB types by column name.
    """

    sql: str
    paths: dict[str, str]
    name: str
    columns: dict[str, str]


def connect_to(*sources: str) -> duckdb.DuckDBPyConnection:
    """An in-memory database that can read tables (files, patterns of file names, or SQL), and no other files."""
    files = [Path(source).parent for source in sources if not QUERY.match(source)]
    return connect(files, [source for source in sources if QUERY.match(source)])


def read_table(connection: duckdb.DuckDBPyConnection, source: str, base: Path, name: str) -> InputTable:
    """Read a table into a DuckDB connection.

    Args:
        connection: Where the table is created.
        source: A file, a pattern of file names, or a SELECT.
        base: The folder that the config will be in.
        name: Name of the table, and of the folder in the config's paths.

    Raises:
        InputError: If it is neither a file nor SQL, or cannot be read.
    """
    if QUERY.match(source):
        query = source.strip().removesuffix(";")
        check_is_select(connection, "the SQL", query)
        _create(connection, f"({query}\n)", name, "the SQL")
        return InputTable("(\n" + query.replace("$", "$$") + "\n)", {}, name, _columns(connection, name))
    path = Path(source)
    files = sorted(path.parent.glob(path.name)) if not path.exists() and re.search(r"[*?\[]", path.name) else [path]
    if not files or not files[0].is_file():
        more = f": it is a folder; give its files, such as '{source}/*.csv'" if path.is_dir() else ""
        raise InputError(f"'{source}' is neither a file nor SQL beginning with SELECT, FROM or WITH{more}")
    return _read_file(connection, path, base, name)


def _read_file(connection: duckdb.DuckDBPyConnection, path: Path, base: Path, name: str) -> InputTable:
    """Read a file, or all files that match a pattern."""
    ending = path.suffix.lower()
    if ending in SHEETS:
        raise InputError(f"'{path}' is a spreadsheet: save the sheet as CSV")
    file = _literal_pattern(path.name) if path.exists() else path.name
    absolute = escaped(f"{_literal_pattern(str(path.parent.resolve()))}/{file}")
    if ending in READERS:
        call = READERS[ending] + "('{file}')"
        _create(connection, call.replace("{file}", absolute), name, f"'{path}'")
    else:
        call = _csv(connection, absolute, name, path)
    folder, paths = _folder(path, base, name)
    shown = call.replace("$", "$$").replace("{file}", f"{folder}/{escaped(file).replace('$', '$$')}")
    return InputTable(shown, paths, name, _columns(connection, name))


def _folder(path: Path, base: Path, name: str) -> tuple[str, dict[str, str]]:
    """The folder of a file as the SQL names it, and the config's ``paths`` for it."""
    folder = path.parent.resolve()
    if re.search(
        r"['*?\[]", str(folder)
    ):  # paths are inserted between quotes unescaped, so write this one into the SQL, escaped
        return escaped(_literal_pattern(str(folder))).replace("$", "$$"), {}
    return f"${{{name}}}", {name: Path(os.path.relpath(folder, base.resolve())).as_posix()}


def _literal_pattern(text: str) -> str:
    """A file name with pattern characters escaped, because DuckDB reads file names as patterns."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _csv(connection: duckdb.DuckDBPyConnection, file: str, name: str, path: Path) -> str:
    """Read a CSV file into a table; returns the SQL call that succeeded, with ``{file}`` for the file."""
    problem = ""
    for options in CSV_ATTEMPTS:
        try:
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM read_csv('{file}'{options})")
        except duckdb.Error as error:
            problem = _first_line(error)
            continue
        columns = _columns(connection, name)
        if len(columns) == 1 and len(next(iter(columns)).split()) > 1:
            return _blank_separated(connection, file, name, next(iter(columns)).split())
        as_text = _columns_to_read_as_text(connection, file, options, columns)
        if not as_text:
            return "read_csv('{file}'" + options + ")"
        types = ", types = {" + ", ".join(f"{literal(column)}: 'VARCHAR'" for column in as_text) + "}"
        _create(connection, f"read_csv('{file}'{options}{types})", name, f"'{path}'")
        return "read_csv('{file}'" + options + types + ")"
    raise InputError(f"'{path}' cannot be read as CSV: {problem}")


def _columns_to_read_as_text(
    connection: duckdb.DuckDBPyConnection, file: str, options: str, columns: dict[str, str]
) -> list[str]:
    """Columns in which type detection loses information: leading zeros, ids like 1e5, the order of day and month."""
    numbers = [column for column, kind in columns.items() if kind in WHOLE]
    floats = [column for column, kind in columns.items() if kind == "DOUBLE"]
    times = [column for column, kind in columns.items() if kind == "DATE" or kind.startswith("TIMESTAMP")]
    if not (numbers or floats or times):
        return []
    rules = [f"bool_or({identifier(column)} LIKE '0_%')" for column in numbers]
    rules += [f"bool_or({identifier(column)} ILIKE '%e%')" for column in floats]
    rules += [f"bool_or(NOT regexp_matches({identifier(column)}, '^\\s*\\d{{4}}\\D'))" for column in times]
    query = f"SELECT {', '.join(rules)} FROM read_csv('{file}'{options}, all_varchar = true)"
    lost = connection.execute(query).fetchall()[0]
    return [column for column, loses in zip(numbers + floats + times, lost, strict=True) if loses]


def _blank_separated(connection: duckdb.DuckDBPyConnection, file: str, name: str, header: Sequence[str]) -> str:
    """Read columns separated by runs of blanks, which DuckDB's CSV reader does not support."""
    words = ", ".join(f"word[{i}] AS {identifier(column)}" for i, column in enumerate(header, 1))
    call = f"""(
    SELECT {words}
    FROM (
        SELECT string_split_regex(trim(line), '\\s+') AS word
        FROM read_csv('{{file}}', columns = {{'line': 'VARCHAR'}}, header = false, skip = 1, delim = '\\x01',
            quote = '', escape = '', auto_detect = false)
    )
)"""
    _create(connection, call.replace("{file}", file), name, "the blank-separated text")
    return call


def _create(connection: duckdb.DuckDBPyConnection, sql: str, name: str, where: str) -> None:
    try:
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM {sql}")
    except duckdb.Error as error:
        raise InputError(f"{where} cannot be read: {_first_line(error)}") from error


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


def _columns(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {name}").fetchall()}
