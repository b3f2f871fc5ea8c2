"""The console command ``tidemark``: it starts fast, says which extra is missing, and ``python -m`` keeps working."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from service.cli import COMMANDS, cli
from tests.conftest import Call, Run, Store, Trained

TIDEMARK = Path(sys.executable).with_name("tidemark")

WITHOUT = """
import sys
for name in {missing}:
    sys.modules[name] = None  # as if it was not installed
from service.cli import main
sys.argv = ["tidemark", *{arguments}]
main()
"""


def without(missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(missing=missing, arguments=list(arguments))
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported_and_says_what_it_does(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert (command.help or "").strip()


def test_the_help_lists_all_commands_and_imports_none_of_them() -> None:
    everything = ["duckdb", "grpc", "hiredis", "numpy", "onnxruntime", "pydantic", "redis", "rich", "sklearn", "zttp"]
    done = without(everything, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.help in done.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "extras"),
    [
        (["sklearn"], ["fit", "--help"], "training"),
        (["matplotlib"], ["report", "nowhere"], "training"),
        (["onnxruntime"], ["serve", "--registry", ".", "--redis", "redis://127.0.0.1:1"], "service"),
        (["duckdb"], ["replay", "--help"], "service,training"),
        (["hdrh"], ["load-test", "--help"], "service,load"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(missing: list[str], arguments: list[str], extras: str) -> None:
    done = without(missing, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: 'tidemark {arguments[0]}' needs the package {missing[0]}")
    assert done.stderr.endswith(f"pip install 'tidemark[{extras}]'\n")
    assert done.stderr.count("\n") == 1


def test_a_command_that_does_not_exist_gets_a_suggestion(call: Call) -> None:
    done = call(cli, "fitt")
    assert done.is_bad_input
    assert "Did you mean fit" in done.err
    assert call(cli, "xyzzy").is_bad_input


def test_serve_takes_the_settings_of_the_server_as_options(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TIDEMARK, "serve", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    shown = run("--help")
    assert shown.returncode == 0
    assert "usage: tidemark serve" in shown.stdout
    refused = run("--registry", "nowhere", "--redis", "redis://127.0.0.1:1", "--port", "65536")
    assert refused.returncode == 2
    assert "--port" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["training", "fit", "--help"], "tidemark fit"),
        (["feature_store", "load", "--help"], "tidemark load"),
        (["service", "--help"], "tidemark serve"),
        (["service.demo", "--help"], "tidemark demo"),
        (["service.healthcheck", "--help"], "tidemark healthcheck"),
        (["service.replay", "--help"], "tidemark replay"),
        (["service.tokens", "new", "--help"], "tidemark tokens new"),
    ],
)
def test_the_modules_can_still_be_run_and_show_the_console_command(
    arguments: list[str], name: str, run_module: Run
) -> None:
    done = run_module(*arguments)
    assert done.code == 0, done.err
    assert done.out.lower().startswith(f"usage: {name}")


def test_customer_ids_says_that_redis_is_empty(call: Call, toy: Trained, clean_redis: str) -> None:
    done = call(cli, "customer-ids", "--redis", clean_redis, "--registry", toy.registry)
    assert done.is_bad_input
    assert "run 'tidemark load' first" in done.err


def test_customer_ids_lists_who_was_loaded(store: Store, call: Call) -> None:
    assert store("load").code == 0
    done = call(cli, "customer-ids", "--redis", store.url, "--registry", store.trained.registry)
    assert done.code == 0
    ids = done.out.splitlines()
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids)) > 300
    assert all(customer_id.startswith("c0") for customer_id in ids)
