"""Data about customers is readable by its owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.archive.writer import ArchiveWriter
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import InputError
from feature_store.files import private_folder
from feature_store.state.events import Event
from feature_store.state.log_entries import encode_event


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Permissions of a folder and of all that is in it."""
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}


def archive(folder: Path) -> None:
    with ArchiveWriter(folder) as writer:
        entry = f"[{encode_event(Event('c', 'visit', 1.0), '', keep_text=False)}]"
        writer.append([(1, entry.encode())])


def test_files_of_the_archive_are_private(tmp_path: Path) -> None:
    archive(tmp_path / "archive")
    assert modes(tmp_path / "archive") == {"archive": 0o700, "position.json": 0o600, "events-00000001.parquet": 0o600}


def test_data_of_the_embedded_redis_is_private_and_so_is_its_socket(tmp_path: Path) -> None:
    with embedded_redis(data=tmp_path / "redis") as url:
        assert Path(url.removeprefix("unix://")).stat().st_mode & 0o077 == 0
    left = modes(tmp_path / "redis")
    assert left.pop("redis") == left.pop("appendonlydir") == 0o700
    assert left
    assert set(left.values()) == {0o600}


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o702])
def test_a_folder_that_everybody_has_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}.: run 'chmod o= "):
        archive(folder)
    with pytest.raises(InputError, match="every user of this machine"), embedded_redis(data=folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_its_group_may_read_gets_files_that_its_group_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o750)
    assert private_folder(folder) == 0o640
    archive(folder)
    assert set(modes(folder).values()) == {0o750, 0o640}
