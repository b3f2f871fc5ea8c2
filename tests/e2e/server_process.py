"""Servers as processes: forked from one that has made all imports, or started as users start them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Protocol, Self

import psutil

from tests.waiting import PATIENCE_S, until

COLD: Final = {"--workers", "--supervised"}
"""With these options a server starts processes of its own, which import its main module again."""


IDLE_LOOKS: Final = 20
"""So often in a row, a hundredth of a second apart, all threads of an idle server are asleep."""


class Process(Protocol):
    """What tests do with a process."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class ForkedProcess:
    """A server that the fork server has started, with the methods of ``subprocess.Popen``."""

    def __init__(self, options: list[str], folder: Path, environment: dict[str, str], log: int) -> None:
        request = {"options": options, "folder": str(folder), "environment": environment}
        self._answer, answer = os.pipe()
        socket.send_fds(_fork_server(), [json.dumps(request).encode()], [log, answer])
        os.close(answer)
        self._code: int | None = None
        self.pid: Final = self._line()

    def _line(self) -> int:
        said = b""
        while not said.endswith(b"\n"):
            byte = os.read(self._answer, 1)
            assert byte, "the fork server has ended"
            said += byte
        return int(said)

    def poll(self) -> int | None:
        """The exit code, or None while the server runs."""
        if self._code is None and select.select([self._answer], [], [], 0)[0]:
            self._code = self._line()
            os.close(self._answer)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, awaited; ``subprocess.TimeoutExpired`` if the server still runs after the timeout."""
        if self._code is None:
            select.select([self._answer], [], [], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("service", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal if the server still runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _fork_server() -> socket.socket:
    """The control socket of this test process's fork server."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = Path(__file__).with_name("fork_server.py")
    command = [sys.executable, "-P", str(script), str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class ServerProcess:
    """A server and its log.

    Args:
        folder: Where it is started and its log is written.
        options: Its command line.
        environment: Variables beside those of this process.
        cold: Start ``python -m service`` itself. Workers and whatever changes the interpreter are always started so.
    """

    def __init__(
        self, folder: Path, *options: str, environment: dict[str, str] | None = None, cold: bool = False
    ) -> None:
        self._path = folder / f"server-{time.monotonic_ns()}.log"
        cold = cold or not COLD.isdisjoint(options) or "PYTHONPATH" in (environment or {})
        whole = os.environ | (environment or {})
        with self._path.open("w") as log:
            self.process: Process = (
                subprocess.Popen([sys.executable, "-m", "service", *options], cwd=folder, env=whole, stderr=log)
                if cold
                else ForkedProcess(list(options), folder, whole, log.fileno())
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._path.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in the log, awaited."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if match := re.search(pattern, self.log):
                return match
            if ended:
                break
            time.sleep(0.01)
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.log}")

    def await_idle(self) -> None:
        """Wait until it has nothing to do: it has taken all that has come, and waits for something else."""
        idle = 0

        def sleeps() -> bool:
            nonlocal idle
            states = {
                stat.read_text().rpartition(")")[2].split()[0]
                for stat in Path(f"/proc/{self.process.pid}/task").glob("*/stat")
            }
            idle = idle + 1 if states == {"S"} else 0
            return idle >= IDLE_LOOKS

        until(sleeps, passing=(FileNotFoundError, ProcessLookupError))  # a thread may end meanwhile

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def target(self) -> str:
        """host:port."""
        return self.wait_for(r"serving on (\S+:\d+)")[1]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
