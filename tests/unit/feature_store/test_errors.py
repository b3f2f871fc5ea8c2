"""Command lines end in one clear line and an exit code, whatever goes wrong that a person can mend."""

from __future__ import annotations

import sys

import click
import pytest

from feature_store.cli import run_cli
from feature_store.errors import InputError, StoreUnavailableError


def ended(
    error: BaseException | int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> tuple[int | str | None, str]:
    @click.command()
    def command() -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_cli(command)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("the column\n 'x' is\tmissing"), 2, "error: the column 'x' is missing\n"),
        (click.ClickException("no such thing"), 2, "error: no such thing\n"),
        (click.FileError("a.toml", "gone"), 2, "error: Could not open file 'a.toml': gone\n"),
        (
            StoreUnavailableError("TimeoutError"),
            2,
            "error: Redis does not answer (TimeoutError): check --redis, and that Redis is running\n",
        ),
        (click.Abort(), 130, "error: stopped\n"),
        (KeyboardInterrupt(), 130, "\nerror: stopped\n"),  # the terminal shows ^C on the line before
        (SystemExit(1), 1, ""),
        (None, 0, ""),
        (3, 3, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_end_has_its_code_and_at_most_one_line(
    error: BaseException | int | None,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(error, monkeypatch, capsys) == (code, line)


def test_an_unknown_option_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = ended(None, monkeypatch, capsys, "--nope")
    assert code == 2
    assert err.startswith("error: No such option")
    assert "--nope" in err
    assert err.count("\n") == 1


def test_a_bug_is_not_disguised_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        run_cli(command)
