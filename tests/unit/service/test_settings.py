"""Settings come from options or the environment, and describe themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import REMOVED, RENAMED, Settings, outdated_setting

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {"registry": Path("r"), "redis": "redis://x"}


def test_every_setting_describes_itself() -> None:
    for name, setting in Settings.model_fields.items():
        assert setting.description, name


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_REGISTRY", "/models")
    monkeypatch.setenv("TIDEMARK_REDIS", "redis://somewhere")
    monkeypatch.setenv("TIDEMARK_PORT", "1234")
    settings = Settings()  # type: ignore[call-arg]
    assert (settings.registry, settings.redis, settings.port) == (Path("/models"), "redis://somewhere", 1234)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70_000), ("port", -1), ("redis", ""), ("redis_timeout_s", 0), ("workers", 0), ("log_level", "LOUD")],
)
def test_a_setting_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**(GOOD | {name: value}))


HERE = ["127.0.0.1", "127.8.0.1", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
ELSEWHERE = ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.4", "fe80::1", "::ffff:10.0.0.1", "shop.example", "127.1"]
PAIR: dict[str, Any] = {"tls_certificate": "c.pem", "tls_key": "k.pem"}


@pytest.mark.parametrize("host", HERE)
def test_this_machine_alone_may_call_without_more(host: str) -> None:
    assert Settings(**GOOD, host=host).host == host


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_machines_may_call_only_where_it_is_said_who_or_that_anyone_may(host: str) -> None:
    for not_enough in ({}, PAIR):
        with pytest.raises(ValidationError, match=r"anyone may call: .*--allow-anyone"):
            Settings(**GOOD, host=host, **not_enough)
    for enough in ({"callers": "callers.toml"}, {"tls_client_ca": "ca.pem", **PAIR}, {"allow_anyone": True}):
        assert Settings(**GOOD, host=host, **enough).host == host


def test_the_image_starts_as_its_comment_says_and_not_without_saying_who_may_call() -> None:
    text = (ROOT / "Dockerfile").read_text()
    host = re.search(r"TIDEMARK_HOST=(\S+)", text)
    assert host is not None
    with pytest.raises(ValidationError, match="anyone may call"):
        Settings(**GOOD, host=host[1])
    commands = re.findall(r"^#   docker run .*?(?=^[^#]|^#   docker|^# [^ ])", text, re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        provided = {name.lower(): value for name, value in re.findall(r"-e TIDEMARK_(\w+)=(\S+)", command)}
        assert Settings(**(GOOD | provided | {"host": host[1]})).host == host[1]


def test_the_key_of_the_log_is_given_or_made_and_not_shown() -> None:
    provided, made, other = Settings(**GOOD, log_key=SecretStr("of the shop")), Settings(**GOOD), Settings(**GOOD)
    assert provided.log_key is not None
    assert provided.log_key.get_secret_value() == "of the shop"
    assert made.log_key is not None
    assert other.log_key is not None
    assert len(made.log_key.get_secret_value()) == 32
    assert made.log_key != other.log_key
    assert "of the shop" not in repr(provided)


def test_the_key_of_the_log_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("of the shop\n")
    settings = Settings(**GOOD, log_key_file=path)
    assert settings.log_key is not None
    assert settings.log_key.get_secret_value() == "of the shop"
    with pytest.raises(ValidationError, match="log_key_file: given together with TIDEMARK_LOG_KEY"):
        Settings(**GOOD, log_key_file=path, log_key=SecretStr("another"))
    path.write_text(" \n")
    with pytest.raises(ValidationError, match="log_key_file: the file is empty"):
        Settings(**GOOD, log_key_file=path)
    with pytest.raises(ValidationError, match="log_key_file: cannot be read"):
        Settings(**GOOD, log_key_file=tmp_path / "none")


# --- settings of earlier releases -----------------------------------------------------------------------------------


def test_old_names_are_no_settings_and_new_names_are() -> None:
    assert not (set(RENAMED) | REMOVED) & set(Settings.model_fields)
    assert set(RENAMED.values()) <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        (["--front", "grpcio"], {}, "--front is called --transport now"),
        (["--max-queue-ms=50"], {}, "--max-queue-ms is called --max-queue-s now, in seconds"),
        (["--no-durable"], {}, "--no-durable is called --durable-events now"),
        (["--slice-rows", "5"], {}, "--slice-rows is no longer a setting: leave it out"),
        ([], {"TIDEMARK_TOKENS": "c.toml"}, "TIDEMARK_TOKENS is called TIDEMARK_CALLERS now"),
        (
            ["--log-key", "secret"],
            {},
            "--log-key: a secret on the command line is visible to all users: set TIDEMARK_LOG_KEY",
        ),
        (["--transport", "grpcio", "--log-key-file=key"], {"TIDEMARK_LOG_KEY": "x"}, None),
    ],
)
def test_a_setting_of_an_earlier_release_is_refused_with_its_new_name(
    arguments: list[str], environment: dict[str, str], problem: str | None
) -> None:
    assert outdated_setting(arguments, environment) == problem
