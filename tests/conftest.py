"""What many tests need: a Redis, bundles, a small shop of made-up customers, and a way to call commands."""

from __future__ import annotations

import csv
import gc
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import duckdb
import numpy as np
import pytest
import redis
from filelock import FileLock
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure

from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles.bundle import OFFERS, Manifest
from feature_store.bundles.registry import SERVING
from feature_store.cli import run_cli
from feature_store.config import BUILT_IN
from feature_store.embedded_redis import embedded_redis
from tests.small_shop import write_small_shop
from tests.waiting import FIT_S, until
from training.customer_key import default_key_path
from training.evidence import HoldoutRows

# Until all tests are collected: what they import stays, and looking for garbage in it takes a seventh of the time.
gc.disable()

ROOT = Path(__file__).parents[1]
NO_ANSWER = r"npm error .*\b(ENOTFOUND|EAI_AGAIN|ECONN\w+|E\w*TIMEDOUT|E\w+UNREACH|E5\d\d)\b"
DAY_S = 86_400
TOY_START = 1_700_006_400  # 2023-11-15 00:00 UTC
TOY_DAYS = 365

FEWER_RESAMPLES = "folds = 2\nselection_rows = 6000\nbootstrap = 100\n"
"""Settings with which the sample is fitted in a third of the time: all of its events, fewer repetitions of choices."""

TOY_CONFIG = '''
[source]
paths = { data = "." }
events = """
SELECT customer_id, to_timestamp(ts) AS event_time, event_type, amount, duration_s FROM '${data}/events.parquet'"""
attributes = "SELECT customer_id, income FROM '${data}/customers.csv'"

[churn]
event = "purchase"
horizon_days = 28
active_days = 60

[propensity]
event = "purchase"
horizon_days = 7

[evaluation]
step_days = 14
warm_up_days = 60
bootstrap = 100

[economics]
margin = 0.3

[economics.churn]
contact_cost = 0.1
offer_cost = 2.0
success_rate = 0.3
redemption_rate = 0.1
budget_share = 0.1

[economics.propensity]
contact_cost = 0.05
offer_cost = 1.0
success_rate = 0.2
redemption_rate = 0.05
budget_share = 0.2

[[feature]]
name = "last_purchase"
event = "purchase"
aggregate = "latest"

[[feature]]
name = "first_purchase"
event = "purchase"
aggregate = "earliest"

[[feature]]
name = "purchases_28d"
event = "purchase"
aggregate = "count"
half_life_days = 28

[[feature]]
name = "spend_56d"
event = "purchase"
aggregate = "sum"
field = "amount"
half_life_days = 56

[[feature]]
name = "dwell_14d"
event = "view"
aggregate = "sum"
field = "duration_s"
half_life_days = 14

[[feature]]
name = "income"
aggregate = "attribute"

[[overdue]]
name = "overdue"
latest = "last_purchase"
rate = "purchases_28d"
'''


@dataclass(frozen=True)
class Shop:
    """A folder with ``events.parquet``, ``customers.csv`` and ``shop.toml``."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "shop.toml"

    def edited(self, *edits: tuple[str, str]) -> Path:
        """A config beside the first one with some passages replaced; each must be there."""
        text = self.config.read_text()
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new)
        path = self.folder / "edited.toml"
        path.write_text(text)
        return path

    def change_events(self, query: str) -> None:
        """Replace the events by what a query over the table ``old`` gives."""
        path = self.folder / "events.parquet"
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE old AS FROM '{path}'")
            connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | str | None
    out: str
    err: str

    @property
    def is_bad_input(self) -> bool:
        """Exit code 2 and exactly one line on stderr that says what is wrong."""
        return self.code == 2 and self.err.startswith("error: ") and self.err.count("\n") == 1


@dataclass(frozen=True)
class Trained:
    """A shop and a registry that holds its bundle."""

    shop: Shop
    registry: Path


Call = Callable[..., Outcome]
Run = Callable[..., Outcome]


@dataclass(frozen=True)
class Store:
    """``python -m feature_store`` on the small shop, its registry and an empty Redis: ``store("load", *options)``."""

    call: Call
    trained: Trained
    url: str

    def __call__(self, command: str, *options: object, config: object = None) -> Outcome:
        config, registry = config or self.trained.shop.config, self.trained.registry
        return self.call(feature_store_cli, command, config, "--registry", registry, "--redis", self.url, *options)

    def keys(self) -> list[bytes]:
        """Everything that Redis holds."""
        with redis.Redis.from_url(self.url) as connection:
            return list(connection.scan_iter())


def write_shop(folder: Path, *, customers: int = 400, seed: int = 1) -> Shop:
    """Customers who buy at rates of their own and leave at some time; each purchase comes with views around it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with (folder / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer_id", "ts", "event_type", "amount", "duration_s"])
        for i in range(customers):
            rate, basket = random.gamma(1.5, 1 / 12), random.lognormal(3, 0.6)
            leaves = min(random.exponential(500), TOY_DAYS)
            for day in np.sort(random.uniform(0, leaves, random.poisson(rate * leaves))):
                ts = round(TOY_START + day * DAY_S, 3)
                rows.writerow([f"c{i:04}", ts, "purchase", round(random.gamma(4, basket / 4), 2), ""])
                rows.writerow([f"c{i:04}", ts - 60, "view", "", round(random.gamma(2, 30), 1)])
        rows.writerow(["c0000", TOY_START, "view", "", 1.0])
        rows.writerow(["c0000", TOY_START + TOY_DAYS * DAY_S, "view", "", 1.0])
    with (folder / "customers.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer_id", "income"])
        rows.writerows(
            [f"c{i:04}", "" if i % 7 == 0 else round(random.normal(40_000, 9_000), 2)] for i in range(customers)
        )
    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM '{folder}/events.csv') TO '{folder}/events.parquet' (FORMAT parquet)")
    shop = Shop(folder)
    shop.config.write_text(TOY_CONFIG)
    return shop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="both fronts for every end-to-end test, and more examples")


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "both_fronts: the subject is the front, so the test runs on lean and on grpcio",
        "one_front: the test runs on the lean front alone, also with --full",
        "any_front: in a module about the fronts, a test of something else, which runs on both with --full alone",
        "full: the test repeats at full size what another one shows, and runs only with --full",
    ):
        config.addinivalue_line("markers", marker)
    # Before anything loads OpenMP, and for the processes that tests start: its threads spin, so that a second one makes
    # small fits slower and, beside any other load, many times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    # How long an example takes says more about what else the machine does than about the code.
    usual = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("quick", usual, max_examples=30)
    settings.register_profile("full", usual, max_examples=150)
    settings.load_profile("full" if config.getoption("--full") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # These wait for the fit of the sample, which goes on beside the others.
    items.sort(key=lambda item: "sample_registry" in getattr(item, "fixturenames", ()))
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_collection_finish() -> None:
    gc.freeze()  # a million objects that no later collection needs to look at
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is never collected counts as leaked


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a command line inside this process: ``call(command, *arguments)``."""

    def run(command: click.Command, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tidemark", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_cli(command)
        out, err = capsys.readouterr()
        return Outcome(ended.value.code, out, err)

    return run


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits inside this process draw nothing in their report: that takes longer than fitting a toy shop."""
    draw_nothing(monkeypatch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """The same for a fixture of another scope."""

    def empty(_figure: Figure, file: IO[str], **_options: object) -> None:
        file.write('<svg viewBox="0 0 1 1"></svg>')

    patch.setattr(Figure, "savefig", empty)


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits inside this process grow a tenth of the trees, which take most of the time of a fit."""
    _grow_few_trees(monkeypatch)


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits inside this process grow few trees and write a report of one line.

    For tests of what a fit does, not of how good its models are.
    """
    fit_quickly(monkeypatch)


def fit_quickly(patch: pytest.MonkeyPatch) -> None:
    """The same for a fixture of another scope."""
    from training.report import render  # noqa: PLC0415  # only once OMP_NUM_THREADS is set

    _grow_few_trees(patch)
    patch.setattr(render, "render_report", lambda *_: "<!doctype html><title>report</title>")


def _grow_few_trees(patch: pytest.MonkeyPatch) -> None:
    from training.models import learners, spend  # noqa: PLC0415  # only once OMP_NUM_THREADS is set

    usual = learners.tree_parameters

    def few(seed: int, rows: int, iterations: int = 100) -> dict[str, Any]:
        return usual(seed, rows, iterations) | {"max_iter": max(5, iterations // 10), "learning_rate": 0.3}

    patch.setattr(learners, "tree_parameters", few)
    patch.setattr(spend, "tree_parameters", few)


@pytest.fixture
def run_module(tmp_path: Path) -> Run:
    """Run ``python -m MODULE …`` as a process of its own, in the test's folder, with the installed wheel."""

    def run(*arguments: object) -> Outcome:
        return _run(tmp_path, *arguments)

    return run


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is not set to UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@contextmanager
def once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all processes of a run share, and whether this one is to fill it; the others wait meanwhile."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real redis-server for the whole session."""
    with embedded_redis() as url:
        yield url


@pytest.fixture
def clean_redis(redis_url: str) -> str:
    """URL of an empty database of the session's Redis; others may use database 0 meanwhile."""
    url = f"{redis_url}?db=7"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


@pytest.fixture(scope="session", autouse=True)
def sample_fit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fits the built-in sample in the background, from the first test on, if a test needs it.

    The fit takes longer than any test: this way nothing waits for it but the tests that need it, which come last.
    Its folder has the registry, what the fit has said, and, when it has ended, its exit code.
    """
    with once(tmp_path_factory, "sample") as (folder, first):
        wanted = any("sample_registry" in getattr(item, "fixturenames", ()) for item in request.session.items)
        fit = _start_sample_fit(folder, full=request.config.getoption("--full")) if first and wanted else None
    yield folder
    if fit is not None:
        fit.wait()  # another process may need it still; Ctrl-C at the tests ends it as well


def _start_sample_fit(folder: Path, *, full: bool) -> subprocess.Popen[bytes]:
    """The command that users call; a shell keeps its exit code for other processes."""
    if not full:  # A file of the built-in config's name is read instead of it.
        text = (BUILT_IN / "complete_journey.toml").read_text()
        assert "[evaluation]\n" in text
        (folder / "complete_journey").write_text(text.replace("[evaluation]\n", f"[evaluation]\n{FEWER_RESAMPLES}"))
    fit = [sys.executable, "-m", "training", "fit", "complete_journey", "--registry", str(folder / "registry")]
    script = f"{shlex.join(fit)} > said.txt 2>&1; echo $? > code; mv code exit_code"
    return subprocess.Popen(["sh", "-c", script], cwd=folder)


@pytest.fixture(scope="session")
def sample_registry(sample_fit: Path) -> Path:
    """A registry with the bundle of the built-in sample, fitted once by the command that users call."""
    until((sample_fit / "exit_code").exists, limit_s=FIT_S)
    assert (sample_fit / "exit_code").read_text() == "0\n", (sample_fit / "said.txt").read_text()
    return sample_fit / "registry"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The toy shop, fitted once for the run. Tests read it; those that change something make a copy."""
    with once(tmp_path_factory, "toy") as (folder, first):
        shop, registry = Shop(folder / "shop"), folder / "registry"
        if first:
            write_shop(shop.folder)
            fit_toy(shop, registry)
    return Trained(shop, registry)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small shop of the end-to-end tests, fitted once for the run."""
    with once(tmp_path_factory, "small") as (folder, first):
        shop, registry = Shop(folder / "shop"), folder / "registry"
        if first:
            write_small_shop(shop.folder)
            fit_toy(shop, registry)
    return Trained(shop, registry)


@dataclass(frozen=True)
class DrawnReport:
    """A report with everything in it, and what it was made of."""

    path: Path
    manifest: Manifest
    rows: dict[str, HoldoutRows]


@pytest.fixture(scope="session")
def drawn_report(tmp_path_factory: pytest.TempPathFactory) -> DrawnReport:
    """A report of made-up evidence with all of its pictures, drawn once for the run."""
    from tests.made_evidence import made_evidence, made_manifest, made_rows  # noqa: PLC0415  # once OMP_NUM_THREADS is set
    from training.report.render import render_report  # noqa: PLC0415

    rows = {offer: made_rows(offer, customers=300) for offer in OFFERS}
    manifest = made_manifest(rows)
    with once(tmp_path_factory, "report") as (folder, first):
        if first:
            (folder / "report.html").write_text(render_report(manifest, made_evidence(), rows))
    return DrawnReport(folder / "report.html", manifest, rows)


@pytest.fixture
def shop(toy: Trained, tmp_path: Path) -> Shop:
    """A copy of the small shop, to be changed."""
    return Shop(Path(shutil.copytree(toy.shop.folder, tmp_path / "shop")))


@pytest.fixture
def registry(toy: Trained, tmp_path: Path) -> Path:
    """A copy of the small shop's registry and of its key, to be changed, without what servers of other tests left."""
    shutil.copy(default_key_path(toy.registry), default_key_path(tmp_path / "registry"))
    ignored = shutil.ignore_patterns(SERVING)
    return Path(shutil.copytree(toy.registry, tmp_path / "registry", symlinks=True, ignore=ignored))


@pytest.fixture
def store(call: Call, toy: Trained, clean_redis: str) -> Store:
    """The commands of the feature store on the small shop and an empty Redis."""
    return Store(call, toy, clean_redis)


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/clients with the packages of its lock file."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm on the PATH")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"node is older than 20: {version.strip()}")
    with once(tmp_path_factory, "node") as (folder, first):
        clients = folder / "clients"
        if first:
            shutil.copytree(ROOT / "tests" / "clients", clients)
            (folder / "skip").write_text(_install_packages(clients))
    if reason := (folder / "skip").read_text():
        pytest.skip(reason)
    return clients


def _install_packages(folder: Path) -> str:
    """Install the packages of the lock file; why that is not possible, or nothing."""
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1"]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return "the npm registry did not answer in time"
    if silent := re.search(NO_ANSWER, ended.stderr):
        return f"the npm registry does not answer: {silent[1]}"
    assert ended.returncode == 0, ended.stderr
    return ""


def fit_toy(shop: Shop, registry: Path, prepare: Callable[[pytest.MonkeyPatch], None] = draw_nothing) -> None:
    """Fit a shop inside this process, without pictures in the report or prepared in another way."""
    from training.__main__ import cli  # noqa: PLC0415  # only once OMP_NUM_THREADS is set

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Field onnx.AttributeProto.ints", DeprecationWarning)
        prepare(patch)
        cli.main(["fit", str(shop.config), "--registry", str(registry)], standalone_mode=False)


def _run(folder: Path, *arguments: object) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=FIT_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
