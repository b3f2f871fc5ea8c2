"""A whole server as users run it: real Redis, the sample's bundle, a process of its own, gRPC over a socket."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import pytest
from tidemark.rpc import status_pb2

from feature_store.embedded_redis import redis_server_command
from tidemark import ScoringClient

T = TypeVar("T")
START_S = 300.0


class ServerProcess:
    """``python -m service`` with its log."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self._path = folder / f"server-{time.monotonic_ns()}.log"
        with self._path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", *options],
                cwd=folder,
                env=os.environ | (environment or {}),
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._path.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in the log, awaited."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.log):
                return found
            if ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.log}")

    @property
    def target(self) -> str:
        """host:port."""
        return self.wait_for(r"serving on (\S+:\d+)")[1]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class RedisProcess:
    """A redis-server that a test may kill and start again in the same place.

    ``fsync``: when what was written goes to disk (always, everysec), or never where nothing is kept.
    """

    def __init__(self, folder: Path, fsync: str = "always") -> None:
        self.path = folder / "redis.sock"
        self._options = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(folder), "--save", ""]
        self._options += ["--appendonly", "no"] if fsync == "never" else ["--appendonly", "yes", "--appendfsync", fsync]
        self.url = f"unix://{self.path}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*redis_server_command(), *self._options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    redis = RedisProcess(tmp_path_factory.mktemp("r"))
    yield redis
    redis.resume()
    redis.kill()


@pytest.fixture(scope="session")
def loaded_redis(redis_url: str, sample_registry: Path) -> str:
    """Redis with all households of the sample, as of now."""
    load_sample(redis_url, sample_registry)
    return redis_url


@pytest.fixture(scope="session", params=["lean", "grpcio"], autouse=True)
def front(request: pytest.FixtureRequest) -> Iterator[str]:
    """All tests run on both fronts: every server that they start is of this one."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMARK_TRANSPORT", name)
        # Nothing is shed, however slow the machine is; who tests that gives options of its own.
        patch.setenv("TIDEMARK_MAX_QUEUE_S", "60")
        patch.setenv("TIDEMARK_MAX_EVENT_QUEUE_S", "60")
        yield name


@pytest.fixture(scope="session")
def server(
    front: str,  # noqa: ARG001  # set before the server starts
    loaded_redis: str,
    sample_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    options = ["--registry", str(sample_registry), "--redis", loaded_redis, "--port", "0"]
    with ServerProcess(tmp_path_factory.mktemp("server"), *options) as process:
        process.wait_for("health is SERVING")
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[ScoringClient]:
    with ScoringClient(server.target, timeout_s=10.0) as found:
        yield found


@pytest.fixture(scope="session")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as found:
        yield found


def load_sample(url: str, registry: Path) -> None:
    command = [
        "feature_store",
        "load",
        "complete_journey",
        "--registry",
        str(registry),
        "--redis",
        url,
        "--shift-to-now",
    ]
    subprocess.run([sys.executable, "-m", *command], cwd=registry, check=True, capture_output=True)


def until_answered(call: Callable[[], T], seconds: float = 5.0) -> T:
    """What a call returns that is unavailable at first."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
        time.sleep(0.005)


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[list[status_pb2.Status]]:
    """The call inside must fail with ``code``; its google.rpc.Status is in the list afterwards."""
    found: list[status_pb2.Status] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield found
    assert caught.value.code() is code, caught.value.details()
    trailers: Any = caught.value.trailing_metadata()
    found.append(status_pb2.Status.FromString(dict(trailers)["grpc-status-details-bin"]))
    assert found[0].code == code.value[0]
    assert found[0].message == caught.value.details()
