"""Real processes that a test may kill: a Redis, two servers with two workers each, an archiver and loaders."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil

from tests.redis_processes import DURABLE, Node, free_port
from tests.waiting import FIT_S

SERVERS: Final = 2
ROOM_BYTES: Final = 4096
"""What a full disk has left."""


class Fleet:
    """All processes of a shop. Those that end by themselves are started again by :meth:`keep_up`."""

    def __init__(self, folder: Path, config: Path, registry: Path) -> None:
        """Start everything.

        Args:
            folder: For data, archive and logs.
            config: The shop's config.
            registry: A registry with its bundle.
        """
        self._folder, self._config, self._registry = folder, str(config), str(registry)
        self.archive_folder: Final = folder / "archive"
        self.redis: Final = Node(folder / "redis", config=DURABLE)
        self.url: Final = self.redis.url
        self.ports: Final = [free_port() for _ in range(SERVERS)]
        self._servers = [self._serve(port) for port in self.ports]
        self._archiver: subprocess.Popen[bytes] | None = None
        self.start_archiver()

    # --- what may be done to it -------------------------------------------------------------------------------------

    def worker(self, server: int) -> psutil.Process | None:
        """Some process below a server, if there is one."""
        try:
            below = psutil.Process(self._servers[server].pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return below[time.monotonic_ns() % len(below)] if below else None

    def kill_server(self, server: int) -> None:
        """SIGKILL a server, whose workers end with it, and start it again."""
        self._servers[server].kill()
        self._servers[server].wait()
        self._servers[server] = self._serve(self.ports[server])

    def kill_redis(self) -> None:
        """SIGKILL Redis, and start it again with its append-only file."""
        self.redis.kill()
        self.redis.start()

    def fill_disk(self, seconds: float) -> None:
        """Redis can write only a few kilobytes more for some time; it may end, and is then started again."""
        pid = self.redis.process.pid
        size = max(path.stat().st_size for path in self._data.rglob("*.aof"))
        limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + ROOM_BYTES, limit[1]))
        time.sleep(seconds)
        self.redis.kill()
        self.redis.start()

    def kill_archiver(self) -> None:
        """SIGKILL the archiver, and start another one."""
        assert self._archiver is not None
        self._archiver.kill()
        self._archiver.wait()
        self.start_archiver()

    def stop_archiver(self) -> None:
        """End the archiver in good order."""
        assert self._archiver is not None
        self._archiver.terminate()
        self._archiver.wait(FIT_S)
        self._archiver = None

    def start_archiver(self) -> None:
        """Start an archiver that moves events every half second."""
        self._archiver = self._start("archive", "archive", "--folder", str(self.archive_folder), "--every", "0.5")

    def load(self, kill_after_s: float | None = None) -> int:
        """Run a load, or SIGKILL it after some time; returns its exit code."""
        process = self._start("load", *self._store("load"), "--archive", str(self.archive_folder))
        if kill_after_s is None:
            return process.wait(FIT_S)
        time.sleep(kill_after_s)
        process.kill()
        return process.wait()

    def archive_once(self) -> int:
        """Move all events that wait; returns the exit code."""
        return self._start("archive-once", "archive", "--folder", str(self.archive_folder), "--once").wait(FIT_S)

    def verify(self) -> int:
        """Compare Redis with the archive and the source; returns the exit code."""
        return self._start("verify", *self._store("verify"), "--archive", str(self.archive_folder)).wait(FIT_S)

    def save_redis(self, copy: Path) -> None:
        """Copy the append-only file, as a backup or a replica that falls behind has it."""
        self.redis.kill()
        shutil.copytree(self._data, copy)
        self.redis.start()

    def restore_redis(self, copy: Path) -> None:
        """Start Redis with an earlier append-only file, which is used up."""
        self.redis.kill()
        shutil.rmtree(self._data)
        shutil.move(copy, self._data)
        self.redis.start()

    # --- keeping it up ----------------------------------------------------------------------------------------------

    def keep_up(self) -> int:
        """Start again what has ended by itself; returns the number of archivers among them, which never should."""
        for number, server in enumerate(self._servers):
            if server.poll() is not None:
                self._servers[number] = self._serve(self.ports[number])
        if self._archiver is None or self._archiver.poll() is None:
            return 0
        self.start_archiver()
        return 1

    def resume(self) -> None:
        """Continue every process that was paused."""
        self.redis.resume()
        for server in self._servers:
            for process in _family(server.pid):
                process.resume()

    def log(self, name: str) -> str:
        """What the processes of a name have printed so far."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything."""
        self.resume()
        ours = [process for server in self._servers for process in _family(server.pid)]
        ours += [] if self._archiver is None else _family(self._archiver.pid)
        for process in ours:
            process.kill()
        for started in (*self._servers, self._archiver):
            if started is not None:
                started.wait()
        self.redis.close()

    @property
    def _data(self) -> Path:
        return self._folder / "redis" / "appendonlydir"

    def _store(self, command: str) -> list[str]:
        return [command, self._config, "--registry", self._registry]

    def _serve(self, port: int) -> subprocess.Popen[bytes]:
        options = ["--registry", self._registry, "--port", str(port), "--workers", "2"]
        return self._popen(f"server-{port}", "service", *options, "--redis", self.url)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self._popen(name, "feature_store", *arguments, "--redis", self.url)

    def _popen(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-P", "-m", module, *arguments]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True)


def pause(process: psutil.Process, seconds: float) -> None:
    """SIGSTOP a process, and continue it after some time, if it is still there."""
    try:
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        pass


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
