"""The supervisor keeps the workers that serve, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket

import pytest

from feature_store.errors import InputError
from service.app import supervisor
from service.settings import Settings
from tests.waiting import until


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import this module: they are started with the path of this process."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[3])])


def work(settings: Settings, _listener: socket, pipe: Connection, _asked: Connection) -> None:
    """A worker that notes its id in a folder, the registry's, and cannot start while there is a file "broken"."""
    folder = settings.registry
    if (folder / "broken").exists():
        pipe.send("the registry cannot be read")
        return
    if (folder / "hanging").exists():
        (folder / f"hung-{os.getpid()}").touch()
        time.sleep(3600)
    (folder / f"worker-{os.getpid()}").touch()
    pipe.send(supervisor.READY)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pipe.poll(None)


def running(folder: Path) -> set[int]:
    """Ids of the workers that run."""
    ids = {int(path.name.partition("-")[2]) for path in folder.glob("worker-*")}
    return {pid for pid in ids if _runs(pid)}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def supervised(folder: Path, act: Callable[[], None]) -> None:
    """Supervise two workers in this thread while ``act`` runs in another, then stop."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            until(lambda: len(running(folder)) == 2)
            act()
        except BaseException as error:  # raised again below
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    thread = threading.Thread(target=run)
    thread.start()
    try:
        settings = Settings(registry=folder, redis="redis://localhost", port=0, workers=2, drain_s=0, grace_s=1)
        supervisor.supervise(settings, work)
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed:
        raise failed[0]


def test_a_worker_that_cannot_be_replaced_for_a_while_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MIN_PAUSE_S", 0.05)

    def act() -> None:
        first, second = sorted(running(tmp_path))
        (tmp_path / "broken").touch()
        os.kill(first, signal.SIGKILL)
        time.sleep(2.0)  # several attempts
        assert running(tmp_path) == {second}
        (tmp_path / "broken").unlink()
        until(lambda: len(running(tmp_path)) == 2)
        os.kill((running(tmp_path) - {second}).pop(), signal.SIGKILL)  # as soon as it is ready
        until(lambda: len(running(tmp_path)) == 2)
        assert second in running(tmp_path)

    supervised(tmp_path, act)


def test_a_replacement_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MIN_PAUSE_S", 0.05)

    def act() -> None:
        (tmp_path / "hanging").touch()
        monkeypatch.setattr(supervisor, "START_S", 0.1)
        os.kill(max(running(tmp_path)), signal.SIGKILL)
        until(lambda: any(tmp_path.glob("hung-*")))
        (tmp_path / "hanging").unlink()
        (hung,) = {int(path.name.partition("-")[2]) for path in tmp_path.glob("hung-*")}
        until(lambda: not _runs(hung))
        monkeypatch.setattr(supervisor, "START_S", 120.0)
        until(lambda: len(running(tmp_path)) == 2)

    supervised(tmp_path, act)


def test_a_worker_that_cannot_start_at_first_ends_all(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(InputError, match="the registry cannot be read"):
            supervisor.supervise(Settings(registry=tmp_path, redis="redis://localhost", port=0, workers=2), work)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
