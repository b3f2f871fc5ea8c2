"""Bad input to ``load`` and ``verify`` ends in one line on stderr and exit code 2, and Redis stays as it was."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from feature_store.__main__ import cli
from feature_store.config import FeatureConfig, built_in_names, load_config
from training.__main__ import cli as training_cli

if TYPE_CHECKING:
    from tests.conftest import Call, Run, Shop, Store, Trained


@pytest.mark.parametrize("command", ["load", "verify"])
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("half_life_days = 28", "half_life_days = 29"), "are not those of bundle"),
        (("half_life_days = 28", "half_life_days = -1"), "edited.toml: feature.2.half_life_days: Input should be"),
        (("[source]", "[source"), "edited.toml: not valid TOML"),
        (("${data}/events", "${date}/events"), "the SQL uses an unknown folder 'date'"),
        (("amount, duration_s FROM", "price FROM"), "source.events: Binder Error"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    store: Store, shop: Shop, command: str, edit: tuple[str, str], told: str
) -> None:
    done = store(command, config=shop.edited(edit))
    assert done.is_bad_input, done.err
    assert told in done.err
    assert store.keys() == []


def test_a_config_of_other_features_is_told_the_mend(store: Store) -> None:
    done = store("load", config="complete_journey")
    assert done.is_bad_input
    assert "fit it first, or name the config that the bundle was made with" in done.err
    assert store.keys() == []


@pytest.mark.parametrize("command", ["load", "verify"])
def test_a_registry_without_a_bundle_is_refused_with_the_mend(
    call: Call, toy: Trained, clean_redis: str, tmp_path: Path, command: str
) -> None:
    done = call(cli, command, toy.shop.config, "--registry", tmp_path / "nothing", "--redis", clean_redis)
    assert done.is_bad_input
    assert "run 'tidemark fit CONFIG --registry" in done.err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", ["load", "verify"])
@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1", "redis://:secret@localhost:port", "nonsense"])
def test_redis_away_or_misspelt_is_one_line_without_the_password(
    call: Call, toy: Trained, command: str, url: str
) -> None:
    done = call(cli, command, toy.shop.config, "--registry", toy.registry, "--redis", url)
    assert done.is_bad_input, done.err
    assert "Redis" in done.err
    assert "secret" not in done.err + done.out


def test_verify_needs_a_load_before_it(store: Store) -> None:
    done = store("verify")
    assert done.is_bad_input
    assert "run 'tidemark load' first" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--as-of", "yesterday"], "'yesterday' is not a time: write for example 2017-12-31"),
        (["--as-of", "2001-01-01"], "no customer is known as of 2001-01-01 00:00:00 UTC: the source begins 2023-11-15"),
        (["--as-off", "2024-01-01"], "No such option"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_a_bad_option_of_load_is_refused(store: Store, shop: Shop, options: list[str], told: str) -> None:
    # The table of customers knows no times: whoever is in it is known at any.
    done = store("load", *options, config=shop.edited(("customers.csv'", "customers.csv' WHERE false")))
    assert done.is_bad_input, done.err
    assert told in done.err
    assert store.keys() == []


@pytest.mark.parametrize("sample", ["0", "-1", "many"])
def test_a_sample_is_at_least_one_customer(store: Store, sample: str) -> None:
    done = store("verify", "--sample", sample)
    assert done.is_bad_input
    assert "--sample" in done.err


def test_what_is_not_given_is_named(call: Call, toy: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    for arguments, reported in (
        (["load"], "CONFIG"),
        (["load", toy.shop.config, "--redis", "redis://localhost"], "--registry"),
        (["load", toy.shop.config, "--registry", toy.registry], "--redis"),
        (["unload"], "unload"),
    ):
        done = call(cli, *arguments)
        assert done.is_bad_input
        assert reported in done.err


def test_the_redis_url_may_come_from_the_environment(
    call: Call, toy: Trained, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", store.url)
    assert call(cli, "load", toy.shop.config, "--registry", toy.registry).code == 0
    keys = store.keys()
    assert len([key for key in keys if re.fullmatch(rb"tm:\w{8}:.+", key)]) == 400


def test_nothing_is_pruned_where_nobody_can_say_what_is_in_use(call: Call, store: Store, tmp_path: Path) -> None:
    assert store("load").code == 0
    before = sorted(store.keys())
    registry = Path(shutil.copytree(store.trained.registry, tmp_path / "registry", symlinks=True))
    (registry / "rollout.json").write_text("{")
    for folder, options in ((registry, []), (tmp_path / "none", []), (store.trained.registry, ["--keep", "20200101"])):
        done = call(cli, "prune", "--registry", folder, "--redis", store.url, *options)
        assert done.is_bad_input, done
        assert "nothing is removed" in done.err
    assert sorted(store.keys()) == before


def every_command() -> list[tuple[str, click.Command, list[str]]]:
    groups = (("feature_store", cli), ("training", training_cli))
    return [
        (f"{name} {' '.join(arguments)}", group, arguments)
        for name, group in groups
        for arguments in ([], *([command] for command in group.commands))
    ]


@pytest.mark.parametrize(("group", "arguments"), [pytest.param(*rest, id=name) for name, *rest in every_command()])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(call: Call, group: click.Command, arguments: list[str], option: str) -> None:
    done = call(group, *arguments, option)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")
    named = {"archive": "--once", "init": "--events", "report": "DIR/VERSION", "compare": "DIR/A DIR/B"}
    named["prune"] = "--keep"
    named["erase"] = "--verify"
    assert named.get("".join(arguments), "CONFIG" if arguments else "Commands:") in done.out


def test_the_commands_are_those_of_the_contract() -> None:
    assert set(cli.commands) == {"load", "verify", "prune", "archive", "cost", "erase"}
    assert set(training_cli.commands) == {"audit", "init", "fit", "report", "compare"}


@pytest.mark.parametrize("module", ["feature_store", pytest.param("training", marks=pytest.mark.full)])
def test_a_module_runs_as_a_command_of_its_own(run_module: Run, module: str) -> None:
    done = run_module(module, "nonsense")
    assert done.is_bad_input, done.err


@pytest.mark.parametrize("name", built_in_names())
def test_every_built_in_config_loads_by_its_name(name: str) -> None:
    config = load_config(FeatureConfig, name)
    assert config.feature or config.candidates


def test_the_sample_is_built_in() -> None:
    assert "complete_journey" in built_in_names()
