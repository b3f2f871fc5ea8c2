"""Online equals offline: every event of a shop through RecordEvents gives the states that a load of it gives."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.conftest import Trained
from tests.e2e.conftest import RedisProcess
from tests.e2e.server_process import ServerProcess
from tests.waiting import FIT_S


def module(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=FIT_S, check=False)


@pytest.fixture
def everysec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    redis = RedisProcess(tmp_path_factory.mktemp("r"), "everysec")
    yield redis
    redis.kill()


def replay(folder: Path, config: object, registry: Path, redis: RedisProcess, day_after: str) -> tuple[str, str]:
    """What a replay of all events says, and a comparison with the source at the end of a day after the last of them."""
    store = ["--registry", registry, "--redis", redis.url]
    (folder / "callers.toml").write_text(
        f'[[caller]]\nname = "replay"\nscopes = ["events"]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n'
    )
    (folder / "token").write_text("secret\n")
    old = ["--max-lateness-hours", "200000", "--port", "0", "--callers", "callers.toml"]
    with ServerProcess(folder, *map(str, [*store, *old])) as server:
        server.wait_for("health is SERVING")
        sent = module("service.replay", config, server.target, "--token-file", folder / "token")
        assert sent.returncode == 0, sent.stderr
    # Redis has nothing but what came in live: the source alone says what that should be.
    verified = module("feature_store", "verify", config, *store, "--as-of", day_after)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return sent.stdout, verified.stdout


@pytest.mark.timeout(FIT_S)
def test_a_replay_of_all_events_gives_the_states_of_a_load(
    small: Trained, everysec: RedisProcess, tmp_path: Path
) -> None:
    sent, verified = replay(tmp_path, small.shop.config, small.registry, everysec, "2024-06-03")
    events = duckdb.read_parquet(str(small.shop.folder / "events.parquet")).shape[0]
    assert f"accepted   {events:,}" in sent
    assert "duplicates 0" in sent
    assert "compared            1,200 of 1,200 customers" in verified
    assert "mismatches          0" in verified


@pytest.mark.full
@pytest.mark.one_front
@pytest.mark.timeout(FIT_S)
def test_a_replay_of_the_whole_year_of_the_sample_gives_the_states_of_a_load(
    sample_registry: Path, everysec: RedisProcess, tmp_path: Path
) -> None:
    sent, verified = replay(tmp_path, "complete_journey", sample_registry, everysec, "2018-01-02")
    assert "accepted   513,844" in sent
    assert "duplicates 0" in sent
    assert "compared            2,469 of 2,469 customers" in verified
    assert "mismatches          0" in verified
