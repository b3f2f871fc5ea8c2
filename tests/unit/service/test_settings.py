"""Settings come from options or the environment, and the README's table is the settings' own documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {"registry": Path("r"), "redis": "redis://x"}
README = Path(__file__).parents[3] / "README.md"


def test_the_readme_documents_every_setting_with_its_default() -> None:
    table = README.read_text()
    for name, setting in Settings.model_fields.items():
        default = "required" if setting.is_required() else f"`{setting.default}`"
        option = "--" + name.replace("_", "-")
        assert f"| `{option}` | `TIDEMARK_{name.upper()}` | {default} | {setting.description} |" in table


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_REGISTRY", "/models")
    monkeypatch.setenv("TIDEMARK_REDIS", "redis://somewhere")
    monkeypatch.setenv("TIDEMARK_PORT", "1234")
    settings = Settings()  # type: ignore[call-arg]
    assert (settings.registry, settings.redis, settings.port) == (Path("/models"), "redis://somewhere", 1234)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70_000), ("port", -1), ("redis", ""), ("redis_timeout_ms", 0), ("slice_rows", 0), ("log_level", "LOUD")],
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
    for enough in ({"tokens": "callers.toml"}, {"tls_client_ca": "ca.pem", **PAIR}, {"allow_anyone": True}):
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
        given = {name.lower(): value for name, value in re.findall(r"-e TIDEMARK_(\w+)=(\S+)", command)}
        assert Settings(**(GOOD | given | {"host": host[1]})).host == host[1]


def test_the_key_of_the_log_is_given_or_made_and_not_shown() -> None:
    given, made, other = Settings(**GOOD, log_key=SecretStr("of the shop")), Settings(**GOOD), Settings(**GOOD)
    assert given.log_key is not None
    assert given.log_key.get_secret_value() == "of the shop"
    assert made.log_key is not None
    assert other.log_key is not None
    assert len(made.log_key.get_secret_value()) == 32
    assert made.log_key != other.log_key
    assert "of the shop" not in repr(given)
