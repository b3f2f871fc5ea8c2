"""How the server reads states: each question gets its own answer, and no mishap of a connection mixes them up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
import pytest
import redis

from feature_store.definitions import Feature
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.layout import State, StateLayout
from tests.waiting import PATIENCE_S

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
CUSTOMERS = [f"c{i}" for i in range(100)]

T = TypeVar("T")


@pytest.fixture
def url(clean_redis: str) -> str:
    """A Redis in which customer ``c<i>`` has ``i`` visits."""
    with StateWriter(clean_redis, LAYOUT) as writer:
        writer.write(CUSTOMERS, [LAYOUT.pack(State(1e9, np.array([float(i)]))) for i in range(len(CUSTOMERS))])
    return clean_redis


def asked(url: str, question: Callable[[StateReader], Awaitable[T]], timeout_s: float = PATIENCE_S) -> T:
    return told_by(url, lambda store: question(StateReader(store, LAYOUT)), timeout_s)


def told_by(url: str, question: Callable[[RedisStore], Awaitable[T]], timeout_s: float = PATIENCE_S) -> T:
    async def ask() -> T:
        store = RedisStore(url, timeout_s)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(ask())


async def visits(reader: StateReader, *numbers: int) -> list[float]:
    batch = await reader.read([CUSTOMERS[i] for i in numbers])
    assert batch.valid.all()
    return [float(value) for value in batch.slots[:, 0]]


def drop_connections(url: str) -> None:
    with redis.Redis.from_url(url) as connection:
        connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_questions_asked_at_once_get_their_own_answers(url: str) -> None:
    async def question(reader: StateReader) -> list[list[float]]:
        return await asyncio.gather(*(visits(reader, i, 99 - i) for i in range(100)))

    assert asked(url, question) == [[i, 99 - i] for i in range(100)]


def test_a_batch_of_a_thousand_is_one_question(url: str) -> None:
    async def question(reader: StateReader) -> list[float]:
        return await visits(reader, *list(range(100)) * 10)

    with redis.Redis.from_url(url) as connection:
        connection.config_resetstat()
        assert asked(url, question) == list(range(100)) * 10
        assert connection.info("commandstats")["cmdstat_mget"]["calls"] == 1


@pytest.mark.parametrize("at_once", [1, 20])
def test_connections_that_died_while_idle_are_no_outage(url: str, at_once: int) -> None:
    async def question(reader: StateReader) -> list[float]:
        await asyncio.gather(*(visits(reader, 1) for _ in range(at_once)))
        drop_connections(url)
        return await visits(reader, 7)

    assert asked(url, question) == [7.0]


def test_a_question_given_up_leaves_no_answer_for_the_next(url: str) -> None:
    async def question(reader: StateReader) -> list[float]:
        await visits(reader, 1)
        with redis.Redis.from_url(url) as blocker:
            blocker.client_pause(1000)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(visits(reader, 2), 0.1)
        return [*await visits(reader, 3), *await visits(reader, 4)]

    assert asked(url, question) == [3.0, 4.0]


def test_a_redis_that_was_too_slow_once_is_asked_again(url: str) -> None:
    async def question(reader: StateReader) -> list[float]:
        await visits(reader, 1)
        with redis.Redis.from_url(url) as blocker:
            blocker.client_pause(2000)
            with pytest.raises(StoreUnavailableError):
                await visits(reader, 2)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(StoreUnavailableError):
                    return await visits(reader, 3)
                await asyncio.sleep(0.01)

    assert asked(url, question, timeout_s=0.5) == [3.0]


def test_a_password_is_used_and_a_wrong_one_is_not_told() -> None:
    with embedded_redis() as url, redis.Redis.from_url(url) as connection:
        connection.config_set("requirepass", "open sesame")
        told_by(url.replace("unix://", "unix://:open%20sesame@"), lambda store: store.ping())
        for wrong in (url, url.replace("unix://", "unix://:shibboleth@")):
            with pytest.raises(StoreUnavailableError) as refused:
                told_by(wrong, lambda store: store.ping())
            assert "shibboleth" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "redis://:secret@localhost:port",
        "redis://:secret@a..b",
        pytest.param("redis://:secret@localhost/?nonsense=1"),
    ],
)
def test_a_bad_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises((InputError, StoreUnavailableError)) as refused:
        told_by(url, lambda store: store.ping())
    assert "secret" not in str(refused.value)
