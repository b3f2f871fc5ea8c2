"""The online store: what commands write comes back to the server in order, and Redis away is one kind of error."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis

from feature_store.definitions import Feature
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.keys import CHUNK, Keys
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.layout import State, StateBatch, StateLayout
from tests.waiting import PATIENCE_S, until

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
OTHER = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=8)])
ODD_IDS = ["Müller", "a b", "a:b", "*", "c?[a]", "客户", "tm:", "x" * 256]
NOBODY = "redis://:secret@127.0.0.1:1"


def packed(*values: float, layout: StateLayout = LAYOUT) -> list[bytes]:
    return [layout.pack(State(1e9, np.array([value]))) for value in values]


@pytest.fixture
def writer(clean_redis: str) -> Iterator[StateWriter]:
    with StateWriter(clean_redis, LAYOUT) as opened:
        yield opened


def read(url: str, customer_ids: list[str], timeout_s: float = PATIENCE_S) -> StateBatch:
    async def ask() -> StateBatch:
        store = RedisStore(url, timeout_s)
        try:
            await store.ping()
            return await StateReader(store, LAYOUT).read(customer_ids)
        finally:
            await store.close()

    return asyncio.run(ask())


def test_states_come_back_in_the_order_asked_for(writer: StateWriter, clean_redis: str) -> None:
    writer.write(["a", "b", "c"], packed(1, 2, 3))
    batch = read(clean_redis, ["c", "nobody", "a", "c"])
    assert batch.found.tolist() == [True, False, True, True]
    assert batch.valid.tolist() == [True, False, True, True]
    assert batch.slots[:, 0].tolist() == [3.0, 0.0, 1.0, 3.0]


def test_any_id_a_customer_may_have_is_a_key_of_its_own(writer: StateWriter, clean_redis: str) -> None:
    writer.write(ODD_IDS, packed(*range(len(ODD_IDS))))
    assert sorted(writer.customer_ids()) == sorted(ODD_IDS)
    assert read(clean_redis, ODD_IDS).slots[:, 0].tolist() == list(range(len(ODD_IDS)))
    writer.delete(["*"])
    assert set(writer.customer_ids()) == set(ODD_IDS) - {"*"}


def test_more_customers_than_one_command_takes_are_written_read_and_removed(writer: StateWriter) -> None:
    ids = [f"c{i}" for i in range(2 * CHUNK + 1)]
    values = packed(*range(len(ids)))
    writer.write(ids, values)
    assert writer.read([*ids, "nobody"]) == [*values, None]
    result = list(writer.customer_ids())
    assert len(result) == len(ids)
    assert set(result) == set(ids)
    writer.delete(ids[1:])
    assert list(writer.customer_ids()) == ["c0"]


def test_nothing_asked_is_nothing_done(writer: StateWriter) -> None:
    writer.write([], [])
    writer.delete([])
    assert writer.read([]) == []


def test_states_of_other_features_live_beside_each_other(writer: StateWriter, clean_redis: str) -> None:
    with StateWriter(clean_redis, OTHER) as other:
        writer.write(["a"], packed(1))
        other.write(["a", "b"], packed(2, 3, layout=OTHER))
        writer.record_load({"as_of": 1.0})
        assert list(writer.customer_ids()) == ["a"]
        assert other.last_load() is None
        writer.delete(["a"])
        assert sorted(other.customer_ids()) == ["a", "b"]
    assert not read(clean_redis, ["a"]).found.any()


def test_a_value_that_another_wrote_under_our_key_is_found_but_not_valid(writer: StateWriter, clean_redis: str) -> None:
    writer.write(["a", "b"], [*packed(1, layout=OTHER), b"torn"])
    batch = read(clean_redis, ["a", "b"])
    assert batch.found.tolist() == [True, True]
    assert batch.valid.tolist() == [False, False]


def test_the_last_load_is_remembered_exactly(writer: StateWriter) -> None:
    assert writer.last_load() is None
    facts = {"as_of": 1_700_000_000.123456, "shift": -1 / 3}
    writer.record_load(facts)
    assert writer.last_load() == facts


def test_a_key_that_is_not_text_can_be_removed_as_well(writer: StateWriter, clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as connection:
        connection.set(Keys(LAYOUT.fingerprint).prefix + b"\xff", b"")
    writer.delete(list(writer.customer_ids()))
    assert list(writer.customer_ids()) == []


@pytest.mark.parametrize("url", [NOBODY, "unix:///no/such/redis.sock"])
def test_redis_away_is_one_kind_of_error_that_tells_no_password(url: str) -> None:
    with pytest.raises(StoreUnavailableError) as refused:
        read(url, ["a"], timeout_s=0.5)
    assert "secret" not in str(refused.value)
    with pytest.raises(StoreUnavailableError) as refused, StateWriter(url, LAYOUT):
        pass
    assert "secret" not in str(refused.value)


def test_a_redis_that_does_not_answer_in_time_is_away() -> None:
    with embedded_redis() as url, redis.Redis.from_url(url) as blocker:
        blocker.client_pause(2000)  # an answer comes after that
        with pytest.raises(StoreUnavailableError):
            read(url, ["a"], timeout_s=0.05)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:secret@localhost",
        "redis://:secret@localhost:port",
        "redis://:secret@localhost:99999",
        "redis://:secret@[::1",
        *(pytest.param(url) for url in ("redis://:secret@localhost/?nonsense=1", "redis://:secret@a..b")),
    ],
)
def test_a_bad_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises((InputError, StoreUnavailableError)) as refused, StateWriter(url, LAYOUT):
        pass
    assert "secret" not in str(refused.value)


def test_an_embedded_redis_listens_on_a_socket_only_and_ends_with_its_block() -> None:
    with embedded_redis("--maxmemory", "64mb") as url:
        path = Path(urlsplit(url).path)
        assert path.is_socket()
        with redis.Redis.from_url(url) as connection:
            settings = connection.config_get("*")
            pid = connection.info("server")["process_id"]
        assert (settings["port"], settings["save"], settings["appendonly"]) == ("0", "", "yes")
        assert settings["maxmemory"] == str(64 * 2**20)
    assert not path.parent.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_an_embedded_redis_that_keeps_its_data_has_on_disk_what_it_acknowledges(tmp_path: Path) -> None:
    with embedded_redis(data=tmp_path / "data") as url, redis.Redis.from_url(url) as connection:
        settings = connection.config_get("append*")
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
        connection.set("acknowledged", "1")
        os.kill(connection.info("server")["process_id"], signal.SIGKILL)
    with embedded_redis(data=tmp_path / "data") as url, redis.Redis.from_url(url) as connection:
        assert connection.get("acknowledged") == b"1"


def test_an_embedded_redis_that_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the embedded redis-server did not start"), embedded_redis("--no-such-option"):
        pass
    capfd.readouterr()


def test_an_embedded_redis_does_not_outlive_a_killed_process(tmp_path: Path) -> None:
    script = """
import os, signal
from feature_store.embedded_redis import embedded_redis
with embedded_redis() as url:
    print(url.removeprefix("unix://"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)

    def is_away() -> bool:
        try:
            read("unix://" + done.stdout.strip(), ["a"])
        except StoreUnavailableError:
            return True
        return False

    until(is_away)
