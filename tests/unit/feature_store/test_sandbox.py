"""The SQL of a config reads the files that the config names, and writes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from feature_store.config import Source
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.sandbox import UNRESTRICTED, connect

ROW = "'a' AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'visit' AS event_type"
DENIED = "TIDEMARK_UNRESTRICTED_SQL=true"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has ``in/a.csv`` and ``out/b.csv``."""
    for name in ("in/a.csv", "out/b.csv"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text("x\n1\n")
    return tmp_path


def read(events: str, **paths: str) -> int:
    """Number of events that a source has."""
    with OfflineStore(Source(events=events, paths=paths)) as store:
        return store.summary.events


@pytest.mark.parametrize(
    "table",
    [
        "'{folder}/in/a.csv'",
        '"{folder}/in/a.csv"',
        "'{folder}/in/*.csv'",
        "read_csv(['{folder}/in/a.csv', '{folder}/out/b.csv'])",
        "'{folder}/in/a.csv' -- the shop's orders\n",
        "/* don't */ '{folder}/in/a.csv'",
    ],
)
def test_files_that_the_sql_names_are_read(folder: Path, table: str) -> None:
    assert read(f"SELECT {ROW} FROM {table.format(folder=folder)}") >= 1


def test_files_of_named_folders_are_read_by_whatever_name(folder: Path) -> None:
    query = f"SELECT {ROW} FROM read_csv('${{data}}' || '/a.csv')"
    assert read(query, data=str(folder / "in")) == 1
    (folder / "link").symlink_to("in")
    assert read(query, data=str(folder / "link")) == 1


def test_a_file_that_is_named_may_be_a_link(folder: Path) -> None:
    (folder / "in" / "linked.csv").symlink_to(folder / "out" / "b.csv")
    assert read(f"SELECT {ROW} FROM '{folder}/in/linked.csv'") == 1


@pytest.mark.parametrize(
    "name",
    [
        "'{folder}/' || 'out/b.csv'",
        "'{folder}/in/' || '../out/b.csv'",
        "'{folder}' || chr(47) || 'out' || chr(47) || 'b.csv'",
        "'/' || substr('{folder}/out/b.csv', 2) || ''",
        "'${{data}}/../out' || '/b.csv'",
    ],
)
def test_a_file_name_that_is_put_together_is_refused_outside_of_named_folders(folder: Path, name: str) -> None:
    parts = str(folder).split("/")
    hidden = "/".join(parts[:-1]) + "/' || '" + parts[-1]
    query = f"SELECT {ROW} FROM read_csv({name.format(folder=hidden)})"
    with pytest.raises(InputError, match=DENIED):
        read(query, data=str(folder / "in"))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1; COPY (SELECT 1) TO '{folder}/written.csv'",
        "COPY (SELECT 1) TO '{folder}/written.csv'",
        "ATTACH '{folder}/written.db'",
        "CREATE TABLE t AS SELECT 1",
        "SET memory_limit = '1GB'",
        "INSTALL httpfs",
    ],
)
def test_sql_that_is_not_a_single_select_is_refused(folder: Path, query: str) -> None:
    before = sorted(folder.rglob("*"))
    sql = query.format(folder=folder)
    for source in (Source(events=sql), Source(attributes=sql)):
        with pytest.raises(InputError, match="must be a single SELECT"):
            OfflineStore(source)
    assert sorted(folder.rglob("*")) == before


def test_the_configuration_is_locked_and_variables_of_python_are_no_tables(folder: Path) -> None:
    secret = connect().sql("SELECT 1 AS x")
    with connect([folder / "in"]) as connection:
        with pytest.raises(duckdb.Error, match="locked"):
            connection.execute("SET enable_external_access = true")
        with pytest.raises(duckdb.CatalogException, match="secret"):
            connection.execute("FROM secret")
    assert secret.fetchall() == [(1,)]


def test_a_trusted_config_may_read_anything_if_the_environment_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNRESTRICTED, "true")
    parts = os.path.split(folder / "out" / "b.csv")
    assert read(f"SELECT {ROW} FROM read_csv('{parts[0]}' || chr(47) || '{parts[1]}')") == 1
    with pytest.raises(InputError, match="must be a single SELECT"):
        read("SELECT 1; SELECT 2")
