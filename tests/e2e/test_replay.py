"""Online equals offline, over the whole real year: every event of the sample through RecordEvents."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import RedisProcess, ServerProcess

EVENTS = 513_844


def module(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)


@pytest.mark.timeout(3600)
def test_the_whole_year_replayed_is_what_a_load_of_it_says(
    front: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sample_registry: Path,
    tmp_path: Path,
) -> None:
    if front != "lean":
        pytest.skip("half a million events once are enough: what stands behind the fronts is the same")
    redis = RedisProcess(tmp_path_factory.mktemp("r"), "everysec")
    request.addfinalizer(redis.kill)
    store = ["--registry", sample_registry, "--redis", redis.url]
    (tmp_path / "callers.toml").write_text(
        f'[[caller]]\nname = "replay"\nscopes = ["events"]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n'
    )
    (tmp_path / "token").write_text("secret\n")
    old = ["--max-lateness-hours", "200000", "--port", "0", "--callers", "callers.toml"]
    with ServerProcess(tmp_path, *map(str, [*store, *old])) as server:
        server.wait_for("health is SERVING")
        sent = module("service.replay", "complete_journey", server.target, "--token-file", tmp_path / "token")
        assert sent.returncode == 0, sent.stderr
        assert f"accepted   {EVENTS:,}" in sent.stdout
        assert "duplicates 0" in sent.stdout
    # Redis has nothing but what came in live: the source alone says what that should be.
    verified = module("feature_store", "verify", "complete_journey", *store, "--as-of", "2018-01-02")
    assert verified.returncode == 0, verified.stdout
    assert "compared            2,469 of 2,469 customers" in verified.stdout
    assert "mismatches          0" in verified.stdout
