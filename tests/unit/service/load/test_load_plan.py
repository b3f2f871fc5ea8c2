"""Bounds of a load test, whom it may load, and what it may not be told."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemark.load.errors import InputError
from tidemark.load.ids import read_ids
from tidemark.load.plan import MAX_CALLS, MAX_RATE, Access, Plan, Target, find_target
from tidemark.load.sending.connection_pool import call_headers

HERE = Target("127.0.0.1", 50051, "127.0.0.1", remote=False)
PLAN = Plan(HERE)


@pytest.mark.parametrize("name", ["127.0.0.1:50051", "[::1]:50051", "127.8.9.1:1"])
def test_loopback_is_loaded_without_a_word(name: str) -> None:
    target = find_target(name, allow_remote=False)
    assert not target.remote
    assert str(target) == name


@pytest.mark.parametrize("name", ["192.0.2.7:50051", "[2001:db8::1]:50051", "0.0.0.0:50051"])
def test_any_other_machine_only_where_it_is_allowed_in_so_many_words(name: str) -> None:
    with pytest.raises(InputError, match="--allow-remote"):
        find_target(name, allow_remote=False)
    assert find_target(name, allow_remote=True).remote


def test_a_name_that_stands_for_this_machine_and_another_is_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[Any] = [(0, 0, 0, "", ("127.0.0.1", 1)), (0, 0, 0, "", ("192.0.2.7", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: addresses)
    with pytest.raises(InputError, match="--allow-remote"):
        find_target("both.example:1", allow_remote=False)


@pytest.mark.parametrize("name", ["", "localhost", ":50051", "localhost:", "localhost:0", "localhost:65536", "a:b"])
def test_what_is_no_target_is_told(name: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        find_target(name, allow_remote=True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"find": True}, "--p99-ms"),
        ({"p99_ms": 1000.0}, "--deadline-ms"),
        ({"processes": 5}, "--connections"),
        ({"rate": MAX_RATE, "duration_s": MAX_CALLS / MAX_RATE}, "at most"),
        ({"rate": MAX_RATE, "deadline_ms": 60_000.0}, "--deadline-ms"),
        ({"rate": 5000.0, "batch": 1000}, "--batch"),
    ],
)
def test_what_is_too_much_or_does_not_go_together_is_told(change: dict[str, Any], word: str) -> None:
    PLAN.check()
    with pytest.raises(InputError, match=word):
        replace(PLAN, **change).check()


def test_a_search_stays_within_the_bounds_of_all_steps_together() -> None:
    plan = replace(PLAN, find=True, p99_ms=5.0, duration_s=1000.0, warm_up_s=0.0, steps=40)
    assert plan.max_rate * plan.duration_s * plan.steps <= MAX_CALLS
    plan = replace(PLAN, deadline_ms=60_000.0, batch=1000)
    replace(plan, rate=plan.max_rate).check()


def test_a_token_goes_into_the_headers_and_into_no_text() -> None:
    plan = replace(PLAN, access=Access(token="s3cret"))
    assert (b"authorization", b"Bearer s3cret") in call_headers(plan)
    assert not [name for name, _ in call_headers(PLAN) if name == b"authorization"]


def test_files_of_tls_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense\n")
    with pytest.raises(InputError, match="TLS"):
        Access(tls=True, ca=tmp_path / "ca.pem").context()
    assert Access().context() is None


def test_ids_of_a_file_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text(" a\n\nb \nc")
    assert list(read_ids(path).ids) == ["a", "b", "c"]
    path.write_text("\n \n")
    with pytest.raises(InputError, match="no ids"):
        read_ids(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_ids(path)
