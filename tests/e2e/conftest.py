"""A whole server as users run it: a real Redis, a small shop's bundle, a server process, gRPC over a socket."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import pytest
from tidemark.rpc import status_pb2

from feature_store.__main__ import cli as feature_store_cli
from feature_store.embedded_redis import redis_server_command
from tests.conftest import Outcome, Run, Trained
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import ScoringClient

T = TypeVar("T")
FRONTS: Final = ["lean", "grpcio"]


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
        until(self.path.exists)

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the front: both where it is the subject of a test (``both_fronts``) or with ``--full``, else lean."""
    markers = {marker.name for marker in metafunc.definition.iter_markers()}
    subject = "both_fronts" in markers and "any_front" not in markers
    both = (subject or metafunc.config.getoption("--full")) and "one_front" not in markers
    metafunc.parametrize("front", FRONTS if both else FRONTS[:1], indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def front(request: pytest.FixtureRequest) -> Iterator[str]:
    """The front of every server that a test starts."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMARK_TRANSPORT", name)
        # However slow the machine is, nothing is shed, and Redis is not away. Tests of that set options themselves.
        patch.setenv("TIDEMARK_MAX_QUEUE_S", "60")
        patch.setenv("TIDEMARK_MAX_EVENT_QUEUE_S", "60")
        patch.setenv("TIDEMARK_REDIS_TIMEOUT_S", "60")
        yield name


@pytest.fixture(scope="session")
def small_registry(small: Trained) -> Path:
    """The registry of the small shop whose customers are numbered."""
    return small.registry


@pytest.fixture(scope="session")
def loaded_redis(redis_url: str, small: Trained) -> str:
    """Redis with all customers of the small shop, as of now."""
    load_small(redis_url, small)
    return redis_url


@pytest.fixture(scope="session")
def server(
    front: str,  # noqa: ARG001  # set before the server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0"]
    with ServerProcess(tmp_path_factory.mktemp("server"), *options) as process:
        process.wait_for("health is SERVING")
        yield process


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[ScoringClient]:
    with ScoringClient(server.target, timeout_s=PATIENCE_S) as result:
        yield result


@pytest.fixture(scope="session")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as result:
        yield result


def load_small(url: str, small: Trained) -> None:
    """Load the small shop's customers into a Redis, as of now."""
    options = ["--registry", str(small.registry), "--redis", url, "--shift-to-now"]
    feature_store_cli.main(["load", str(small.shop.config), *options], standalone_mode=False)


def until_answered(call: Callable[[], T]) -> T:
    """The reply of a call that may be unavailable at first."""
    replies: list[T] = []

    def answered() -> bool:
        try:
            replies.append(call())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return bool(replies)

    until(answered)
    return replies[0]


@pytest.fixture
def run_service(tmp_path: Path) -> Run:
    """Run ``python -m service …``, forked, until it ends by itself: ``run_service(*options)``."""

    def run(*options: object) -> Outcome:
        with ServerProcess(tmp_path, *map(str, options)) as server:
            code = server.process.wait(PATIENCE_S)
            return Outcome(code, "", server.log)

    return run


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[list[status_pb2.Status]]:
    """The call inside must fail with ``code``; its google.rpc.Status is in the list afterwards."""
    result: list[status_pb2.Status] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield result
    assert caught.value.code() is code, caught.value.details()
    trailers: Any = caught.value.trailing_metadata()
    result.append(status_pb2.Status.FromString(dict(trailers)["grpc-status-details-bin"]))
    assert result[0].code == code.value[0]
    assert result[0].message == caught.value.details()
