"""A random history: two servers, an archiver and a loader on a real Redis, and what is done to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import redis

from feature_store.archive.mover import move
from feature_store.archive.writer import ArchiveWriter
from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.erasure_check import traces_of
from feature_store.loading import load as loading
from feature_store.loading.load import load_states, verify_states
from feature_store.offline.store import OfflineStore
from feature_store.online import erasure
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore, MergeRefusedError
from feature_store.online.event_log import EventLog
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import StateLayout
from tests.faults.archived import archived_events
from tests.faults.model import Model
from tests.redis_processes import DURABLE, Node
from tests.waiting import PATIENCE_S

START: Final = int(time.time()) - 86_400
NAMES: Final = [f"shopper-{number}" for number in range(12)]
LAYOUT: Final = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=3650)])

T = TypeVar("T")


class KilledError(BaseException):
    """The process is killed here."""


class History:
    """One history. Every step is done on Redis and in the model; a step that is interrupted is done again.

    In half of the histories nothing reads the log before the end: there is no archive, and no load.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.model = Model()
        self.now = START
        self.sent: list[tuple[str, str, int]] = []
        self.node = Node(folder / "redis-0", config=DURABLE)
        self.nodes = 1
        self.steps: Counter[str] = Counter()
        self.has_archive = self.random.random() < 0.5

    # --- what happens -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Do one thing at random."""
        kinds = {
            self.record: 8,
            self.again: 2,
            self.merge: 2,
            self.erase: 3,
            self.erase_at_once: 1,
            self.consent: 2,
            self.kill_eraser: 1,
            self.kill_redis: 1,
        }
        if self.has_archive:
            kinds |= {
                self.archive: 2,
                self.load: 1,
                self.kill_archiver: 1,
                self.erase_during_load: 1,
                self.fail_over: 1,
            }
        step = self.random.choices(list(kinds), list(kinds.values()))[0]
        self.now += self.random.randint(1, 5)
        self.steps[step.__name__] += 1
        step()

    def record(self) -> None:
        batch = []
        for _ in range(self.random.randint(1, 6)):
            self.now += 1
            batch.append((self.name(), f"event-{len(self.sent)}", self.now))
            self.sent.append(batch[-1])
        self._record(batch)

    def again(self) -> None:
        """Events that were sent before, as after an answer that was lost."""
        if self.sent:
            self._record(self.random.choices(self.sent, k=3))

    def merge(self) -> None:
        alias, root = self.random.sample(NAMES, 2)
        try:
            self.do(lambda store: store.merge(alias, root))
        except MergeRefusedError:
            return
        self.model.merge(alias, root)

    def erase(self) -> None:
        name = self.name()
        self.do(lambda store: store.erase(name))
        self.model.erase(name, self.now)

    def erase_at_once(self) -> None:
        """Two servers erase two customers of the same log entries."""
        first, second = self.random.sample(NAMES, 2)
        self.now += 1
        batch = [(name, f"event-{len(self.sent)}-{name}", self.now) for name in (first, second)]
        self.sent += batch
        self._record(batch)
        self.do_on_both(lambda store: store.erase(first), lambda store: store.erase(second))
        for name in (first, second):
            self.model.erase(name, self.now)

    def consent(self) -> None:
        name, allowed = self.name(), self.random.random() < 0.5
        self.do(lambda store: store.consent(name, scoring=allowed, automated_response=None))
        self.model.consent(name, allowed=allowed)

    def archive(self) -> None:
        with CommandClient(self.url) as client, ArchiveWriter(self.archive_folder) as archive:
            move(EventLog(client), archive, new_redis=True)

    def load(self) -> None:
        self.archive()
        if not self.archived():
            return
        with StateWriter(self.url, LAYOUT) as writer, OfflineStore(Source(archive=str(self.archive_folder))) as source:
            load_states(source, writer, LAYOUT, archive=self.archive_folder)

    # --- what is done to them ---------------------------------------------------------------------------------------

    def kill_archiver(self) -> None:
        """The archiver is killed before, while or after it removes entries that it has archived."""
        with _killed(EventLog, "forget", after=self.random.random() < 0.5), _until_killed():
            self.archive()

    def kill_eraser(self) -> None:
        """A server is killed while it erases; the caller sends the call again."""
        name = self.name()
        with _killed(erasure, "_scrub_all", after=self.random.random() < 0.5), _until_killed():
            self.do(lambda store: store.erase(name))
        self.do(lambda store: store.erase(name))
        self.model.erase(name, self.now)

    def erase_during_load(self) -> None:
        """A customer is erased after a load has computed its state: before it reads what is stored, or after."""
        name, step = self.name(), self.random.choice(["_write_chunk", "_tombstones"])
        original, erased = getattr(loading.Loader, step), list[str]()

        def erase_once() -> None:
            if not erased:
                erased.append(name)
                self.do(lambda store: store.erase(name))

        def with_erasure(loader: loading.Loader, *arguments: Any) -> Any:
            if step == "_write_chunk":
                erase_once()
            result = original(loader, *arguments)
            erase_once()
            return result

        with _replaced(loading.Loader, step, with_erasure):
            self.load()
        if erased:
            self.model.erase(name, self.now)
            assert {"resurrected by a load": self._count(name)} == {"resurrected by a load": 0}

    def kill_redis(self) -> None:
        """Redis is killed, and started again with its append-only file."""
        self.node.kill()
        self.node.start()

    def fail_over(self) -> None:
        """A replica that lagged becomes master. All that it lacks had been archived."""
        self.archive()
        kept, backup = self.model.copy(), self._backup()
        for _ in range(self.random.randint(0, 4)):
            self.now += 1
            self.random.choice([self.record, self.erase, self.consent])()
        self.archive()
        self.node.close()
        self.node = Node(self.folder / f"redis-{self.nodes}", config=DURABLE)
        self.nodes += 1
        for key, (value, expires_ms) in backup.items():
            self.node.client.restore(key, expires_ms, value)
        self.model = self.model.after_loss(kept)
        self.record_on_new_master()
        self.load()

    def record_on_new_master(self) -> None:
        """Customers that the archive knows to be erased or withheld may be refused here only after its recovery."""
        batch = [(f"new-{self.nodes}-{number}", f"new-{self.nodes}-{number}", self.now) for number in range(3)]
        self._record(batch)

    # --- what is right ----------------------------------------------------------------------------------------------

    def differences(self) -> dict[str, int]:
        """Events that the archive lacks, has several times, or has although their customer was erased."""
        self.archive()
        archived, expected = self.archived(), self.model.events.keys()
        return {
            "faults_lost": len(expected - archived.keys()),
            "faults_doubled": sum(number - 1 for number in archived.values()),
            "faults_resurrected": len(archived.keys() - expected),
        }

    def check(self) -> None:
        """Compare everything with the model."""
        self.load()
        counts = self.model.counts()
        archived = self.archived()
        assert {"lost": self.model.events.keys() - archived.keys()} == {"lost": set()}
        assert {"resurrected": archived.keys() - self.model.events.keys()} == {"resurrected": set()}
        assert {"doubled": {name for name, number in archived.items() if number > 1}} == {"doubled": set()}
        names = sorted({*NAMES, *counts})
        for name in names:
            if self.model.root(name) == name and name not in self.model.withheld:
                assert self._count(name) == counts[name], (name, self.steps)
        for name in self.model.withheld & set(NAMES):
            assert not self.do(lambda store, name=name: store.get(name)).profile.scoring  # type: ignore[misc]
        gone = [name for name in self.model.erased if not counts[self.model.root(name)] and name not in self._known()]
        with CommandClient(self.url) as client:
            assert list(traces_of(client, gone, self.archive_folder, [])) == []
        if counts:
            with (
                StateWriter(self.url, LAYOUT) as writer,
                OfflineStore(Source(archive=str(self.archive_folder))) as source,
            ):
                assert verify_states(source, writer, LAYOUT, archive=self.archive_folder).ok

    def archived(self) -> Counter[str]:
        """How often each event is in the archive."""
        return archived_events(self.archive_folder)

    # --- how --------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return self.node.url

    @property
    def archive_folder(self) -> Path:
        return self.folder / "archive"

    def name(self) -> str:
        return self.random.choice(NAMES)

    def do(self, use: Callable[[CustomerStore], Awaitable[T]]) -> T:
        return self.do_on_both(use)[0]

    def do_on_both(self, *uses: Callable[[CustomerStore], Awaitable[T]]) -> list[T]:
        """Use as many servers as there are uses, at the same time."""

        async def run() -> list[T]:
            connections = [RedisStore(self.url, PATIENCE_S) for _ in uses]
            folder = EventFolder([LAYOUT], Interests(), Rules(max_lateness_s=1e8))
            try:
                stores = [CustomerStore(each, folder, clock=lambda: float(self.now)) for each in connections]
                for each in connections:
                    await each.ask(b"PING")  # connected: the uses begin at the same time
                return await asyncio.gather(*(use(store) for use, store in zip(uses, stores, strict=True)))
            finally:
                for each in connections:
                    await each.close()

        return asyncio.run(run())

    def _record(self, batch: list[tuple[str, str, int]]) -> None:
        events = [Event(name, "visit", float(t), event_id=event_id) for name, event_id, t in batch]
        self.do(lambda store: store.record(events))
        for name, event_id, t in batch:
            self.model.record(name, event_id, t)

    def _count(self, name: str) -> int:
        with StateWriter(self.url, LAYOUT) as writer:
            states = LAYOUT.unpack(writer.read([name]))
        return round(float(states.slots[0, 0])) if states.found[0] else 0

    def _known(self) -> set[str]:
        """Ids that are known for something else than events."""
        return {*self.model.roots, *self.model.roots.values(), *self.model.withheld, *self._with_profile()}

    def _with_profile(self) -> set[str]:
        return {key.decode().removeprefix("tm:live:") for key in self.node.client.scan_iter("tm:live:*")}

    def _backup(self) -> dict[bytes, tuple[bytes, int]]:
        client = self.node.client
        return {key: (client.dump(key) or b"", max(client.pttl(key), 0)) for key in client.scan_iter(count=1000)}


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _killed(owner: Any, name: str, *, after: bool) -> Iterator[None]:
    """End the process before or after the first call of a function, as far as Redis can see."""
    original = getattr(owner, name)

    def killed(*arguments: Any) -> Any:
        if not after:
            raise KilledError
        result = original(*arguments)
        if asyncio.iscoroutine(result):
            return _then_killed(result)
        raise KilledError

    with _replaced(owner, name, killed):
        yield


async def _then_killed(work: Awaitable[Any]) -> None:
    await work
    raise KilledError


@contextmanager
def _until_killed() -> Iterator[None]:
    try:
        yield
    except KilledError:
        pass
    except redis.RedisError as error:
        raise AssertionError("Redis did not answer") from error
