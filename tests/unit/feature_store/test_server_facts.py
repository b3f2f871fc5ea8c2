"""What a redis-server says about itself, and what of it makes it unusable."""

from __future__ import annotations

import pytest
from redis.exceptions import RedisError

from feature_store.errors import ReadOnlyStoreError, StoreFullError
from feature_store.online.transport.connections import refusal
from feature_store.online.transport.server_facts import facts_of, facts_of_info, refused_command

INFO = (
    b"# Server\r\nredis_version:%b\r\nrun_id:abc\r\n"
    b"# Memory\r\nmaxmemory:%d\r\nmaxmemory_policy:%b\r\n# Persistence\r\naof_enabled:1\r\n"
)


@pytest.mark.parametrize("version", [b"2.8.24", b"5.0.14", b"6.0.16"])
def test_a_version_that_is_too_old_is_named(version: bytes) -> None:
    problem = facts_of([INFO % (version, 0, b"noeviction"), [None], RedisError("NOSCRIPT")]).problem
    assert version.decode() in problem
    assert "6.2 or newer" in problem


@pytest.mark.parametrize("version", [b"6.2.14", b"7.2.4", b"8.2.3", b"10.0.0", b"255.255.255"])
def test_other_versions_are_used(version: bytes) -> None:
    facts = facts_of([INFO % (version, 0, b"allkeys-lru"), [None], RedisError("NOSCRIPT No matching script")])
    assert facts.problem == ""
    assert (facts.run, facts.append_only) == (b"abc", True)


def test_a_redis_that_hides_its_version_is_used() -> None:
    assert facts_of([b"# Server\r\nrun_id:abc\r\n", [None], RedisError("NOSCRIPT")]).problem == ""


def test_the_facts_that_redis_py_has_parsed_are_the_same() -> None:
    info = {
        "redis_version": "8.2.3",
        "run_id": "abc",
        "maxmemory": 5,
        "maxmemory_policy": "allkeys-lru",
        "aof_enabled": 1,
    }
    assert facts_of_info(info) == facts_of([INFO % (b"8.2.3", 5, b"allkeys-lru"), [None], [None]])


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("unknown command 'EVALSHA', with args beginning with: 'mary@example.org'", "EVALSHA"),
        ("unknown command `mget`, with args beginning with: `a`, ", "MGET"),
        ("NOPERM User limited has no permissions to run the 'mget' command", "MGET"),
        ("NOPERM this user has no permissions to run the 'evalsha' command or its subcommand", "EVALSHA"),
        ("NOPERM No permissions to access a key", ""),
        ("NOSCRIPT No matching script. Please use EVAL.", ""),
    ],
)
def test_a_command_that_is_not_allowed_is_named_and_nothing_else_of_the_reply(text: str, command: str) -> None:
    assert refused_command(RedisError(text)) == command


@pytest.mark.parametrize("before", ["", "Error running script (call to f_ab12): @user_script:9: @user_script: 9: -"])
def test_a_script_that_finds_the_memory_full_is_understood_in_old_and_new_versions(before: str) -> None:
    text = before + "OOM command not allowed when used memory > 'maxmemory'."
    assert type(refusal(RedisError(text))) is StoreFullError
    assert type(refusal(RedisError(text.replace("OOM", "MISCONF")))) is ReadOnlyStoreError
