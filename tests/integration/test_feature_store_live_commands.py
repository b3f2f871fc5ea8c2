"""``cost`` and ``archive``: what a config costs, and the log moved to disk."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from feature_store import capacity
from feature_store.__main__ import cli
from feature_store.archive.reader import read_archive
from feature_store.bundles import bundle
from feature_store.definitions import Interests
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore
from feature_store.online.event_log import EventLog
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import StateLayout
from tests.conftest import Call, Shop, Trained


def record(url: str, trained: Trained, events: Sequence[Event]) -> None:
    layout = StateLayout(bundle.read(trained.registry).manifest.features)

    async def run() -> None:
        redis = RedisStore(url, 5.0)
        await CustomerStore(redis, EventFolder([layout], Interests(), Rules())).record(events)
        await redis.close()

    asyncio.run(run())


def visits(count: int) -> list[Event]:
    return [Event(f"c{number}", "view", time.time(), event_id=f"{number}") for number in range(count)]


def rows(folder: Path) -> int:
    return read_archive(folder, lambda snapshot: snapshot.rows)


def figures(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


@pytest.fixture
def few_customers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured with a tenth of the customers: the figures become less exact, not others."""
    monkeypatch.setattr(capacity, "CUSTOMERS", capacity.CUSTOMERS // 10)


@pytest.mark.usefixtures("few_customers")
def test_the_cost_of_a_config_is_measured_and_follows_its_features(call: Call, shop: Shop) -> None:
    result = call(cli, "cost", shop.config, "--million", 3)
    assert result.code == 0, result.err
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    features, state = figures(lines["features"]), figures(lines["state"])
    assert features == [6]
    assert state[0] == 24 + 8 * 6
    record, event, score = figures(lines["profile"]), figures(lines["event"]), figures(lines["score without graph"])
    assert record[1] == 100
    assert all(0 < figure < 5000 for figure in (*record, *event, *score))
    (total, _load) = figures(lines["3 million customers"])
    assert total == pytest.approx((state[1] + record[0]) * 3e6 / 2**30, rel=0.02)
    less = shop.edited(('[[feature]]\nname = "income"\naggregate = "attribute"\n', ""))
    fewer = call(cli, "cost", less, "--events-per-month", 0)
    assert f"state                {24 + 8 * 5} bytes packed" in fewer.out


@pytest.mark.usefixtures("few_customers")
def test_the_cost_of_candidates_is_that_of_what_training_kept(call: Call, toy: Trained, shop: Shop) -> None:
    wide = shop.folder / "wide.toml"
    wide.write_text(shop.config.read_text() + "\n[candidates]\n")
    refused = call(cli, "cost", wide)
    assert (refused.code, refused.out) == (2, "")
    assert "has candidates: fit it, and name the registry of the bundle with --registry" in refused.err
    result = call(cli, "cost", wide, "--registry", toy.registry, "--events-per-month", 0)
    assert result.code == 0, result.err
    assert "features             6" in result.out


def test_archive_moves_the_log_to_disk_once_and_leaves_nothing_of_it(
    call: Call, toy: Trained, clean_redis: str, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    record(clean_redis, toy, visits(150))
    done = call(cli, "archive", "--redis", clean_redis, "--folder", folder, "--once")
    assert done.code == 0
    assert "archived 1 commits" in done.out
    assert rows(folder) == 150
    again = call(cli, "archive", "--redis", clean_redis, "--folder", folder, "--once")
    assert "archived 0 commits" in again.out
    with CommandClient(clean_redis) as client:
        log = EventLog(client)
        assert list(log.entries(1, log.position())) == []
        assert log.archived() == log.position()


def test_archive_goes_on_until_it_is_told_to_stop_and_moves_the_rest_then(
    toy: Trained, clean_redis: str, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    command = [sys.executable, "-m", "feature_store", "archive", "--folder", str(folder), "--every", "0.1"]
    with subprocess.Popen(command, env={**os.environ, "REDIS_URL": clean_redis}, stderr=subprocess.PIPE) as process:
        try:
            record(clean_redis, toy, visits(20))
            deadline = time.monotonic() + 300
            while not (folder / "position.json").exists() or rows(folder) < 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            record(clean_redis, toy, [Event("late", "view", time.time())])
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert rows(folder) == 21


def test_two_archivers_do_not_write_one_archive(call: Call, clean_redis: str, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    command = [sys.executable, "-m", "feature_store", "archive", "--folder", str(folder), "--redis", clean_redis]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        try:
            deadline = time.monotonic() + 300
            while not (folder / "position.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            second = call(cli, "archive", "--redis", clean_redis, "--folder", folder, "--once")
        finally:
            first.kill()
    assert second.is_bad_input
    assert "only one may write it" in second.err
