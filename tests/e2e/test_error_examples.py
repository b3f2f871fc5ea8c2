"""The example of each reason in the documentation returns that reason, and each error names the reason's page."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from tidemark.rpc import error_details_pb2, status_pb2

from feature_store.state.events import EventReason
from service.error_catalog import ERRORS, TARGET, ErrorEntry
from service.error_pages import page_path
from service.errors import Reason
from tests.conftest import Trained
from tests.e2e.conftest import RedisProcess, load_small, refused
from tests.e2e.live import Live, event, someone
from tests.e2e.server_process import ServerProcess
from tests.redis_processes import cluster
from tests.waiting import PATIENCE_S
from tidemark import CallFailedError
from tidemark.base import Client
from tidemark.errors import problem_of_error

BY_HAND: Final = {"CONFLICT", "SERVER_STOPPING", "DEADLINE_TOO_SHORT", "INTERNAL"}
"""Reasons that only fault injection can bring about."""
PLAIN: Final = sorted(
    reason
    for reason, entry in ERRORS.items()
    if not (entry.by_hand or entry.options or entry.requires or entry.redis == "cluster")
    and "REDIS_URL" not in entry.example
    and '"models' not in entry.example
)
OTHERS: Final = sorted(set(ERRORS) - set(PLAIN) - BY_HAND)


def test_every_reason_is_documented_and_few_have_no_example() -> None:
    assert set(ERRORS) == {*map(str, Reason), *map(str, EventReason)}
    assert {reason for reason, entry in ERRORS.items() if entry.by_hand} == BY_HAND
    assert all(bool(entry.example) is not bool(entry.by_hand) for entry in ERRORS.values())


def run(program: str, target: str) -> str:
    """Execute an example against a server, and return the reason that it gets."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(program.replace(TARGET, target), "<example>", "exec"), {"__name__": "__main__"})
    except CallFailedError as error:
        return error.problem.reason
    except grpc.RpcError as error:
        return problem_of_error(error).reason
    return printed.getvalue().strip()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no client gives up early."""
    defaults: Any = Client.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "timeout_s", PATIENCE_S)


@pytest.mark.both_fronts
@pytest.mark.parametrize("reason", PLAIN)
def test_the_example_of_a_reason_returns_it(reason: str, server: ServerProcess) -> None:
    assert run(ERRORS[reason].example, server.target) == reason


Serve = Callable[[ErrorEntry], ServerProcess]


@pytest.fixture
def serve(
    small: Trained, toy: Trained, own_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    """Starts the server that an example needs, on a Redis and a registry of its own."""
    with ExitStack() as stack:

        def start(entry: ErrorEntry) -> ServerProcess:
            shop = toy if entry.requires else small
            registry = shutil.copytree(shop.registry, tmp_path / "models", symlinks=True)
            url = own_redis.url
            if entry.redis == "cluster":
                nodes = stack.enter_context(cluster(tmp_path / "cluster", 2))
                url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
            load_small(url, shop)
            for name, text in entry.files.items():
                (tmp_path / name).write_text(text)
            monkeypatch.setenv("REDIS_URL", url)
            monkeypatch.chdir(tmp_path)
            options = ["--registry", str(registry), "--redis", url, "--port", "0", *entry.options]
            server = stack.enter_context(ServerProcess(tmp_path, *options))
            server.wait_for("health is SERVING")
            return server

        yield start


@pytest.mark.parametrize("reason", OTHERS)
def test_an_example_that_needs_a_server_of_its_own_returns_its_reason(reason: str, serve: Serve) -> None:
    entry = ERRORS[reason]
    server = serve(entry)
    assert run(entry.example, server.target) == reason


# --- addresses of pages ---------------------------------------------------------------------------------------------


def help_of(status: status_pb2.Status) -> list[str]:
    """The addresses in the Help of an error."""
    pages = error_details_pb2.Help()
    return [link.url for detail in status.details if detail.Unpack(pages) for link in pages.links]


@pytest.mark.both_fronts
@pytest.mark.parametrize("docs_url", ["", "https://docs.shop.example/tidemark", "https://docs.shop.example/tidemark/"])
def test_an_error_names_the_page_of_its_reason(
    docs_url: str, loaded_redis: str, small_registry: Path, tmp_path: Path
) -> None:
    site = "https://docs.shop.example/tidemark/" if docs_url else ""
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0", "--docs-url", docs_url]
    with ServerProcess(tmp_path, *options) as server, grpc.insecure_channel(server.target) as channel:
        live = Live(channel)
        with refused(grpc.StatusCode.NOT_FOUND) as failed:
            live.score(someone())
        assert help_of(failed[0]) == [site + page_path("CUSTOMER_UNKNOWN")]
        rejected = live.record(event(someone(), "")).rejected[0]
        assert rejected.help_url == site + page_path("EVENT_TYPE_INVALID")
