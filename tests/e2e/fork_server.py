"""Starts servers without importing anything again: one process that has imported the service forks for each of them.

A start of ``python -m service`` spends most of its time on imports. This process has made them once, and has started
nothing yet: no thread, event loop, gRPC channel or ONNX session that a fork could not take along. Each request is one
message on the control socket (options, folder and environment as JSON) with two descriptors: the file for the server's
log, and a pipe on which this process answers with the server's process id and later with its exit code, as
``subprocess`` counts it. When the control socket closes, all servers that still run are killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

MAX_REQUEST_BYTES = 2**20
IMPORTED = [
    "service.__main__",
    "service.app.server",
    "service.app.supervisor",
    "service.batching",
    "service.telemetry.prometheus",
    "grpc.aio",
    "redis.asyncio.cluster",
    "uvloop",
    "zttp",
]
"""All that a server imports but ONNX Runtime, which starts a thread when it is imported."""


@dataclass
class ForkServer:
    """The sockets that are waited for, and by process id, where the exit code of each server goes."""

    control: socket.socket
    child_ended: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    answers: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        """Fork servers until the control socket closes. In a server's process this returns when the server ends."""
        for end in self.child_ended:
            end.setblocking(False)  # noqa: FBT003
        signal.set_wakeup_fd(self.child_ended[1].fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests: they stop their servers
        with selectors.DefaultSelector() as selector:
            for waited in (self.control, self.child_ended[0]):
                selector.register(waited, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self.child_ended[0] in ready:
                    self.child_ended[0].recv(4096)
                    self.report_ended()
                if self.control in ready:
                    data, descriptors, _, _ = socket.recv_fds(self.control, MAX_REQUEST_BYTES, 2)
                    if not data:
                        break
                    if self.fork(*descriptors) == 0:
                        selector.close()
                        serve(json.loads(data), descriptors[0])
                        return
        for pid in self.answers:
            os.kill(pid, signal.SIGKILL)

    def fork(self, log: int, answer: int) -> int:
        """A new process, and in it nothing that belongs to this one; the process id, or 0 in the new process."""
        if pid := os.fork():
            os.close(log)
            os.write(answer, b"%d\n" % pid)
            self.answers[pid] = answer
            return pid
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for own in (self.control, *self.child_ended):
            own.close()
        for other in (answer, *self.answers.values()):
            os.close(other)
        return 0

    def report_ended(self) -> None:
        """Answer with the exit codes of the servers that have ended."""
        while self.answers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            answer = self.answers.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test no longer asks
                os.write(answer, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(answer)


def serve(request: dict[str, Any], log: int) -> None:
    """Be ``python -m service``."""
    assert sys.modules.keys() >= set(IMPORTED), "each server would import everything again"
    assert "onnxruntime" not in sys.modules, "a fork has none of its threads"
    from service.__main__ import main  # noqa: PLC0415

    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = ["service", *request["options"]]
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def import_all() -> None:
    """Import most of what a server has imported by the time it serves, with either front.

    By name, since a linter takes an ``import`` that nothing in this file uses for a mistake and removes it.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as service.__main__ does before it imports grpc
    for module in IMPORTED:
        importlib.import_module(module)


if __name__ == "__main__":
    import_all()
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()
