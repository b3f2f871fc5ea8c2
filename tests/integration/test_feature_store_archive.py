"""An archive holds what the log says: exactly once, whatever happens, and nothing of whom it was told to forget."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.archive.reader import COLUMNS, POSITION_FILE, ArchiveSnapshot, read_archive
from feature_store.archive.writer import ArchiveWriter
from feature_store.errors import InputError

START = 1.7e9
Item = list[Any]
Entries = list[tuple[int, bytes]]


def event(customer_id: str, t: float = START, **fields: object) -> Item:
    known = {"amount": 1.5, "duration_s": None, "item_id": None, "channel": None, "event_id": None, "text": None}
    return ["e", customer_id, t, "purchase", *(known | {"mark": ""} | fields).values()]


def log(*items: Sequence[Item], first: int = 1) -> Entries:
    """An entry of the log per argument."""
    return [(seq, json.dumps(entry).encode()) for seq, entry in enumerate(items, first)]


def content(folder: Path) -> tuple[int, list[tuple[Any, ...]], dict[str, str]]:
    """Position, rows ``(seq, n, customer_id, t)`` in order, and aliases."""

    def use(snapshot: ArchiveSnapshot) -> tuple[int, list[tuple[Any, ...]], dict[str, str]]:
        rows = reading().execute(f"SELECT seq, n, customer_id, t FROM ({snapshot.events_sql}) ORDER BY seq, n")
        return snapshot.position, rows.fetchall(), snapshot.aliases(reading())

    return read_archive(folder, use)


@cache
def reading() -> duckdb.DuckDBPyConnection:
    """A database for all reads, which keeps nothing of a file: to make one takes ten times as long as a read."""
    return duckdb.connect(config={"enable_external_file_cache": False})


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


# --- against a plain model --------------------------------------------------------------------------------------


class Model:
    """The same in plain Python: a list of rows and a dict of aliases, gone through from the beginning each time."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.aliases: dict[str, str] = {}

    def take(self, seq: int, items: Sequence[Item]) -> None:
        for n, (kind, *fields) in enumerate(items):
            if kind == "e":
                self.rows.append((seq, n, *fields[:2]))
            elif kind == "m":
                alias, root = fields
                self.aliases = {name: root if to == alias else to for name, to in self.aliases.items()} | {alias: root}
            else:
                (ids,) = fields
                self.rows = [row for row in self.rows if row[2] not in ids]
                self.aliases = {name: to for name, to in self.aliases.items() if not {name, to} & set(ids)}


@st.composite
def histories(draw: st.DrawFn) -> list[list[list[Item]]]:
    """Appends of entries of items, with merges that a live path allows: of roots only."""
    model, ids = Model(), st.sampled_from(["a", "b", "c", "o'hara", "客户", "z" * 40])
    appends: list[list[list[Item]]] = []
    for _ in range(draw(st.integers(1, 8))):
        entries: list[list[Item]] = []
        for _ in range(draw(st.integers(0, 4))):
            items: list[Item] = []
            for kind in draw(st.lists(st.sampled_from("eeeeemd"), max_size=4)):
                item, other = draw(ids), draw(ids)
                if kind == "e":
                    items.append(event(item, START + draw(st.integers(0, 99)) / 8))
                elif kind == "d":
                    root = model.aliases.get(item, item)
                    items.append(["d", [root, *(name for name, to in model.aliases.items() if to == root)]])
                elif item != other and not {item, other} & model.aliases.keys():
                    items.append(["m", item, other])
                model.take(0, items[-1:])
            entries.append(items)
        appends.append(entries)
    return appends


@settings(max_examples=25)
@given(histories(), st.integers(1, 6), st.lists(st.booleans(), min_size=8, max_size=8))
def test_an_archive_holds_what_a_plain_replay_of_the_log_does(
    history: list[list[list[Item]]], rows_per_file: int, reopened: list[bool]
) -> None:
    model, seq = Model(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        archive = ArchiveWriter(folder, rows_per_file=rows_per_file)
        for appended, reopen in zip(history, reopened, strict=False):
            entries = log(*appended, first=seq + 1)
            for items in appended:
                seq += 1
                model.take(seq, items)
            archive.append(entries)
            if reopen:
                archive.close()
                archive = ArchiveWriter(folder, rows_per_file=rows_per_file)
            archive.append(entries)  # again: it is there already
            assert archive.position == seq
            assert content(folder) == (seq, model.rows, model.aliases)
        archive.close()


def test_all_columns_come_back_as_they_were(tmp_path: Path) -> None:
    texts: dict[str, object] = {"item_id": "shoe", "channel": "web", "event_id": "e-1", "text": 'a "b"\n\0😀'}
    t = 1_700_000_000.123456789
    with ArchiveWriter(tmp_path) as archive:
        archive.append(log([event("ann", t, amount=None, duration_s=7, **texts, mark="capped")], [event("客户", -0.5)]))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        result = read_archive(
            tmp_path, lambda snapshot: connection.execute(f"{snapshot.events_sql} ORDER BY seq").fetchnumpy()
        )
        kinds = {
            row[0]: row[1] for row in connection.execute(f"DESCRIBE FROM '{tmp_path}/events-*.parquet'").fetchall()
        }
    assert result["t"].tolist() == [t, -0.5]
    assert result["event_time"].astype("int64").tolist() == [1_700_000_000_123_457, -500_000]
    assert [result[name][0] for name in texts] == list(texts.values())
    assert result["mark"].tolist() == ["capped", ""]
    assert result["duration_s"].tolist() == [7.0, None]
    assert result["amount"].tolist() == [None, 1.5]
    assert set(kinds) == set(COLUMNS)
    assert kinds["event_time"] == "TIMESTAMP"


def test_gaps_in_the_log_are_no_matter(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path) as archive:
        archive.append([*log([event("a")], first=5), *log([], first=9)])
        assert archive.position == 9
        archive.append(log([event("late")], first=7))
        archive.append([])
    assert content(tmp_path) == (9, [(5, 0, "a", START)], {})


@pytest.mark.parametrize("order", [[2, 1], [1, 1], [1, 3, 2]])
def test_entries_out_of_order_are_refused(tmp_path: Path, order: list[int]) -> None:
    with ArchiveWriter(tmp_path) as archive, pytest.raises(ValueError, match="ascending"):
        archive.append([(seq, b"[]") for seq in order])


def test_a_malformed_entry_leaves_everything_as_it_was(tmp_path: Path) -> None:
    archive = ArchiveWriter(tmp_path)
    archive.append(log([event("a")], [["m", "b", "a"]]))
    before = bytes_of(tmp_path)
    with pytest.raises(InputError, match="entry 4 of the log is malformed: item 1: it is not an event"):
        archive.append(log([event("c"), ["m", "c", "a"]], [event("d"), ["x"]], first=3))
    assert bytes_of(tmp_path) == before
    with pytest.raises(ValueError, match="closed"):
        archive.append(log([event("c")], first=3))
    with ArchiveWriter(tmp_path) as anew:
        anew.append(log([event("c")], first=3))
    assert content(tmp_path) == (3, [(1, 0, "a", START), (3, 0, "c", START)], {"b": "a"})


# --- files ------------------------------------------------------------------------------------------------------


def test_many_small_appends_leave_few_files_and_full_ones_stay_as_they_are(tmp_path: Path) -> None:
    full: dict[str, int] = {}
    with ArchiveWriter(tmp_path, rows_per_file=64) as archive:
        for seq in range(1, 151):
            archive.append(log([event(f"c{seq % 7}")], first=seq))
            names = files(tmp_path)
            assert len(names) <= 1 + seq // 32 + 7
            for name, made in full.items():
                assert (tmp_path / name).stat().st_mtime_ns == made
            sizes = read_archive(tmp_path, lambda snapshot: {file.name: file.rows for file in snapshot.manifest.events})
            assert max(sizes.values()) <= 64
            assert sum(sizes.values()) == seq
            full = {name: (tmp_path / name).stat().st_mtime_ns for name, rows in sizes.items() if rows == 64}
    assert len(full) == 150 // 64


def test_an_append_larger_than_a_file_is_one_file_all_the_same(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path, rows_per_file=10) as archive:
        archive.append(log([event("a")] * 25, [event("b")]))
        archive.append(log([event("c")], first=3))
    assert read_archive(tmp_path, lambda snapshot: [file.rows for file in snapshot.manifest.events]) == [26, 1]


def test_an_erasure_leaves_no_byte_of_the_customer_and_rewrites_only_where_there_was_one(tmp_path: Path) -> None:
    gone, root = "erase-me-17", "root-of-17"
    with ArchiveWriter(tmp_path, rows_per_file=2) as archive:
        archive.append(log([event("a"), event("b")]))
        archive.append(log([event(gone, text="I am erase-me-17"), event("b")], [["m", gone, root]], first=2))
        archive.append(log([event("c"), event("d")], first=4))
        archive.append(log([event(root), event(gone)], first=5))
        for name in (gone, root):
            assert name.encode() in bytes_of(tmp_path)
        before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
        archive.append(log([event(gone), ["d", [root, gone]], event("e")], first=6))
        assert content(tmp_path) == (
            6,
            [
                (1, 0, "a", START),
                (1, 1, "b", START),
                (2, 1, "b", START),
                (4, 0, "c", START),
                (4, 1, "d", START),
                (6, 2, "e", START),
            ],
            {},
        )
        for name in (gone, root):
            assert name.encode() not in bytes_of(tmp_path)
        kept = {path.name for path, node in before.items() if path.exists() and path.stat().st_ino == node}
        assert kept >= {"events-00000001.parquet", "events-00000004.parquet"}
        assert len(files(tmp_path)) == 5  # where nothing was left, nothing is
        archive.append(log([event(gone)], first=7))
    assert content(tmp_path)[1][-1] == (7, 0, gone, START)


def test_what_is_not_of_the_archive_is_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "events.parquet", "events-1.parquet.bak"):
        (tmp_path / name).write_text("mine")
    with ArchiveWriter(tmp_path) as archive:
        archive.append(log([event("a")]))
    assert {"notes.txt", "events.parquet", "events-1.parquet.bak"} <= files(tmp_path)


# --- crashes ----------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """The process ends here: no handler for errors sees it."""


@contextmanager
def killed_at(step: int, *, after: bool) -> Iterator[list[str]]:
    """End the process at a step that changes the disk, right before or right after it; yields the steps taken."""
    steps: list[str] = []

    def stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            steps.append(name)
            now = len(steps) == step
            if now and not after:
                raise KilledError
            done = real(*args, **options)
            if now:
                raise KilledError
            return done

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", stepping("fsync", os.fsync))
        patch.setattr(ArchiveWriter, "_copy", stepping("copy", ArchiveWriter._copy))
        for name in ("replace", "unlink", "mkdir", "write_bytes"):
            patch.setattr(Path, name, stepping(name, getattr(Path, name)))
        yield steps


FIRST = log([event("a"), event("gone")], [["m", "x", "gone"]], [event("b")])
SECOND = log([event("c"), ["m", "y", "b"]], [["d", ["gone", "x"]]], [event("gone")], first=4)
BEFORE = (3, [(1, 0, "a", START), (1, 1, "gone", START), (3, 0, "b", START)], {"x": "gone"})
AFTER = (6, [(1, 0, "a", START), (3, 0, "b", START), (4, 0, "c", START), (6, 0, "gone", START)], {"y": "b"})


@pytest.fixture
def steps_apart(request: pytest.FixtureRequest) -> int:
    """Being killed before a step is being killed after the one before it: every other step leaves no moment out."""
    return 1 if request.config.getoption("--full") else 2


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rows_per_file", [1, 100])
def test_killed_at_any_step_of_an_append_everything_is_there_exactly_once(
    tmp_path: Path, steps_apart: int, rows_per_file: int, *, after: bool
) -> None:
    with ArchiveWriter(tmp_path / "first", rows_per_file=rows_per_file) as archive:
        for entry in FIRST:
            archive.append([entry])
    for step in range(1, 100, steps_apart):
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(step))
        try:
            with killed_at(step, after=after) as steps, ArchiveWriter(folder, rows_per_file=rows_per_file) as archive:
                archive.append(SECOND)
        except KilledError:
            pass
        else:
            break
        assert content(folder) in (BEFORE, AFTER)
        with ArchiveWriter(folder, rows_per_file=rows_per_file) as archive:
            assert content(folder) == (BEFORE if archive.position == 3 else AFTER)
            assert not any(name.endswith(".tmp") for name in files(folder))
            archive.append([*FIRST, *SECOND])
        assert content(folder) == AFTER
    assert set(steps) == {"mkdir", "copy", "fsync", "replace", "write_bytes", "unlink"}


@pytest.mark.parametrize("name", [".position.json.0123abcd", "position.json.tmp", "events-00000009.parquet.tmp"])
def test_files_that_a_killed_process_left_unfinished_are_removed(tmp_path: Path, name: str) -> None:
    with ArchiveWriter(tmp_path) as archive:
        archive.append(FIRST)
    (tmp_path / name).write_text("half of")
    with ArchiveWriter(tmp_path):
        assert name not in files(tmp_path)
    assert content(tmp_path) == BEFORE


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_its_making_an_archive_can_still_be_made(
    tmp_path: Path, steps_apart: int, *, after: bool
) -> None:
    for step in range(1, 100, steps_apart):
        folder = tmp_path / str(step)
        try:
            with killed_at(step, after=after), ArchiveWriter(folder) as archive:
                archive.append(FIRST)
        except KilledError:
            with ArchiveWriter(folder) as archive:
                archive.append(FIRST)
            assert content(folder) == BEFORE
        else:
            break
    assert step > 15


def test_files_are_on_the_disk_before_the_commit_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        steps.append(f"sync {re.sub('[.][0-9a-f]{8}$', '.(random)', name)}")
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        steps.append(f"rename {target.name}")
        return real_replace(path, target)

    with ArchiveWriter(tmp_path) as archive:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        archive.append(log([event("a")]))
    assert steps == [
        "sync events-00000001.parquet.tmp",
        "rename events-00000001.parquet",
        f"sync {tmp_path.name}",
        "sync .position.json.(random)",
        "rename position.json",
        f"sync {tmp_path.name}",
    ]


@pytest.mark.parametrize("failing", ["fsync", "COPY"])
def test_a_disk_that_fails_is_told_and_the_next_try_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    archive = ArchiveWriter(tmp_path)
    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        else:
            patch.setattr(archive, "_folder", tmp_path / "gone")
        with pytest.raises(InputError, match=r"^archive .* cannot be written: (No space left on device|IOException)$"):
            archive.append(FIRST)
    with ArchiveWriter(tmp_path) as anew:
        anew.append(FIRST)
    assert content(tmp_path) == BEFORE


# --- one writer, many readers -----------------------------------------------------------------------------------


def test_only_one_process_may_write(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path) as first:
        with pytest.raises(InputError, match="open for writing in another process: only one may write it"):
            ArchiveWriter(tmp_path)
        first.append(FIRST)
    ArchiveWriter(tmp_path).close()


def test_a_reader_beside_a_writer_sees_one_commit_and_nothing_between_two(tmp_path: Path) -> None:
    """Each append adds an event of `a` and erases the one of `b` before it: any one commit has an event of each."""
    done, enough = threading.Event(), threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with ArchiveWriter(tmp_path, rows_per_file=8) as archive:
            while written < 2000 and not (written >= 49 and enough.is_set()):
                written += 1
                archive.append(log([event("a"), ["d", ["b"]], event("b")], first=written))
                # A slow reader gets its time too, and not ever more events to read.
                enough.wait(0 if written < 49 else 0.05)
        done.set()

    calls: list[int] = []

    def use(snapshot: ArchiveSnapshot) -> tuple[int, list[tuple[Any, ...]]]:
        calls.append(snapshot.position)
        rows = reading().execute(f"SELECT customer_id, seq FROM ({snapshot.events_sql}) ORDER BY ALL").fetchall()
        return snapshot.position, rows

    ArchiveWriter(tmp_path).close()
    writer = threading.Thread(target=write)
    writer.start()
    reads, last = 0, -1
    while not done.is_set():
        position, rows = read_archive(tmp_path, use)
        assert rows == ([("a", seq) for seq in range(1, position + 1)] + [("b", position)] if position else [])
        assert position >= last
        reads, last = reads + 1, position
        if reads > 3:
            enough.set()
    writer.join()
    assert reads > 3
    assert read_archive(tmp_path, use)[0] == written


def test_a_reader_whose_file_has_gone_begins_anew_with_the_newer_commit(tmp_path: Path) -> None:
    seen: list[int] = []
    with ArchiveWriter(tmp_path) as archive, duckdb.connect() as connection:
        archive.append(log([event("a")]))

        def use(snapshot: ArchiveSnapshot) -> int:
            seen.append(snapshot.position)
            if len(seen) < 4:
                archive.append(log([event("a")] * snapshot.rows, first=snapshot.position + 1))
            return len(connection.execute(snapshot.events_sql).fetchall())

        assert read_archive(tmp_path, use) == 8
    assert seen == [1, 2, 3, 4]


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with ArchiveWriter(tmp_path) as archive:
        archive.append(FIRST)
    return tmp_path


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 3}', '{"position": -1}'])
def test_a_damaged_commit_is_named(kept: Path, text: str) -> None:
    (kept / POSITION_FILE).write_text(text)
    for use in (lambda: ArchiveWriter(kept), lambda: content(kept)):
        with pytest.raises(InputError, match=r"position\.json is damaged or was written by another release"):
            use()


def test_a_commit_cannot_name_files_elsewhere(kept: Path) -> None:
    path = kept / POSITION_FILE
    path.write_text(path.read_text().replace("events-0000", "../events-0000"))
    with pytest.raises(InputError, match=r"position\.json is damaged"):
        content(kept)


def test_without_its_commit_an_archive_is_not_begun_anew(kept: Path) -> None:
    (kept / POSITION_FILE).unlink()
    before = files(kept)
    with pytest.raises(InputError, match=r"position\.json is missing: restore it from a copy"):
        ArchiveWriter(kept)
    assert files(kept) == before


def test_a_missing_or_torn_file_is_named(kept: Path) -> None:
    path = next(kept.glob("events-*"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"archive .* cannot be read: .*events-\d{8}.parquet"):
        content(kept)
    path.unlink()
    with pytest.raises(InputError, match=r"archive .* cannot be read: .*events-\d{8}.parquet"):
        content(kept)
    with pytest.raises(InputError, match=r"events-\d{8}.parquet is missing: restore it from a copy"):
        ArchiveWriter(kept)


def test_where_no_archive_can_be_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="holds no archive: name the folder"):
            content(folder)
    with pytest.raises(InputError, match=r"archive .*file cannot be written: "):
        ArchiveWriter(tmp_path / "file")


def test_the_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's [1] * ?"
    with ArchiveWriter(folder) as archive:
        archive.append(FIRST)
        archive.append(SECOND)
    assert content(folder) == AFTER
