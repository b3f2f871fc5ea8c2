"""Real processes under kill -9: clients, faults at random, and a comparison with the model at the end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from feature_store.erasure_check import traces_of
from feature_store.online.command_client import CommandClient
from tests.e2e.live import Live
from tests.faults.archived import archived_events
from tests.faults.clients import Client
from tests.faults.fleet import Fleet, pause
from tests.faults.model import Model
from tests.waiting import FIT_S, until

CLIENTS: Final = 4
FAULTS: Final = {
    "kill_worker": 3,
    "kill_server": 2,
    "kill_redis": 2,
    "pause_redis": 2,
    "pause_worker": 3,
    "kill_archiver": 2,
    "kill_loader": 2,
    "load": 1,
    "fill_disk": 1,
    "go_back": 1,
}
NEW_MASTER: Final = "new-master"
"""Begins the ids of events that a Redis acknowledged after it had lost commits, and before that was noticed."""
NO_REDIS: Final = "error: Redis does not answer"
MAX_CHECKED: Final = 1000
"""Customers whose features are compared at the end."""


class Chaos:
    """Clients on a fleet of processes, and faults.

    Attributes:
        figures: Numbers of faults of each kind and, after :meth:`finish`, of acknowledged calls and of differences.
        problems: What should not have happened.
    """

    def __init__(self, folder: Path, config: Path, registry: Path, seed: int) -> None:
        """Start the processes and the clients.

        Args:
            folder: For data, archive and logs.
            config: The shop's config.
            registry: A registry with its bundle.
            seed: Of all random choices. Two runs differ all the same, since processes run as they like.
        """
        self._folder, self._random = folder, random.Random(seed)
        self.fleet: Final = Fleet(folder, config, registry)
        self.model = Model()
        self.figures: Counter[str] = Counter()
        self.problems: list[str] = []
        self._lock = threading.Lock()
        targets = [f"127.0.0.1:{port}" for port in self.fleet.ports]
        until(self._answers, passing=grpc.RpcError, limit_s=FIT_S)
        self._clients = [Client(number, targets, self.model, self._lock, seed) for number in range(CLIENTS)]
        for client in self._clients:
            client.start()

    def run(self, seconds: float, faults: Mapping[str, int] = FAULTS) -> None:
        """Do things to the processes for some time.

        Args:
            seconds: How long.
            faults: Names of methods of this class, and how often each is chosen, relative to the others.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._random.uniform(0.2, 2.0))
            (fault,) = self._random.choices(list(faults), list(faults.values()))
            self.figures[fault] += 1
            getattr(self, fault)()
            self._keep_up()

    # --- faults -----------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        if (worker := self.fleet.worker(self._server())) is not None:
            worker.kill()

    def kill_server(self) -> None:
        self.fleet.kill_server(self._server())

    def kill_redis(self) -> None:
        self.fleet.kill_redis()

    def pause_redis(self) -> None:
        self.fleet.redis.pause()
        time.sleep(self._random.uniform(0.1, 2.0))
        self.fleet.redis.resume()

    def pause_worker(self) -> None:
        if (worker := self.fleet.worker(self._server())) is not None:
            pause(worker, self._random.uniform(0.1, 3.0))

    def kill_archiver(self) -> None:
        self.fleet.kill_archiver()

    def kill_loader(self) -> None:
        self.fleet.load(kill_after_s=self._random.uniform(0.5, 4.0))

    def load(self) -> None:
        """A load may find that Redis is away or that customers change too fast; it must not harm anything."""
        self.figures["loads_refused"] += self.fleet.load() != 0

    def fill_disk(self) -> None:
        self.fleet.fill_disk(self._random.uniform(0.1, 1.5))

    def go_back(self) -> None:
        """Redis loses its newest commits, all of which are archived, and acknowledges events of new customers."""
        copy = self._folder / "copy"
        with self._at_rest():
            self.fleet.stop_archiver()
            self._expect("archive-once", self.fleet.archive_once())
            self.fleet.save_redis(copy)
            self._merging(allowed=False)
        time.sleep(self._random.uniform(0.3, 2.0))
        with self._at_rest():
            self._expect("archive-once", self.fleet.archive_once())
            self.fleet.restore_redis(copy)
            for client in self._clients:
                client.names.clear()
                client.label = NEW_MASTER
        time.sleep(self._random.uniform(0.3, 2.0))
        with self._at_rest():
            self._expect("archive-once", self.fleet.archive_once())
            self._expect("load", self.fleet.load())
            self.fleet.start_archiver()
            self._merging(allowed=True)
            for client in self._clients:
                client.label = "event"

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End the clients, and compare everything with the model."""
        self.fleet.resume()
        for client in self._clients:
            client.over.set()
        for client in self._clients:
            client.join()
            self.problems += client.problems
            self.figures.update(client.acknowledged)
        self._keep_up()
        self.fleet.stop_archiver()
        self._expect("archive-once", self.fleet.archive_once())
        archived, expected = archived_events(self.fleet.archive_folder), self.model.events.keys()
        lost = expected - archived.keys()
        self.figures["faults_lost"] = len(lost)
        self.figures["failover_lost_new_master"] = sum(name.startswith(NEW_MASTER) for name in lost)
        self.figures["faults_doubled"] = sum(number - 1 for number in archived.values())
        self.figures["faults_resurrected"] = len(archived.keys() - expected)
        self._expect("load", self.fleet.load())
        self._expect("verify", self.fleet.verify())
        counts = self.model.counts()
        until(self._answers, passing=grpc.RpcError, limit_s=FIT_S)
        self._check_customers(counts)
        self._check_erased(counts)

    def close(self) -> None:
        """End everything."""
        for client in self._clients:
            client.over.set()
        self.fleet.close()

    def _check_customers(self, counts: Counter[str]) -> None:
        """Servers know all events of each customer, and nothing of those without any."""
        names = [name for name in counts if name not in self.model.withheld]
        with grpc.insecure_channel(f"127.0.0.1:{self.fleet.ports[0]}") as channel:
            live = Live(channel)
            for name in self._random.sample(names, min(len(names), MAX_CHECKED)):
                if (number := _count(live, name)) != counts[name]:
                    self.problems.append(f"{name} has {number} events, not {counts[name]}")

    def _check_erased(self, counts: Counter[str]) -> None:
        """Nothing is left of customers that were erased and have done nothing since."""
        seen = {name for name, _ in self.model.events.values()} | set(self.model.roots) | set(counts)
        gone = [name for name in self.model.erased if not {name, self.model.root(name)} & (seen | self.model.withheld)]
        with CommandClient(self.fleet.url) as client:
            self.problems += [
                f"not erased: {trace}" for trace in traces_of(client, gone, self.fleet.archive_folder, [])
            ]

    # --- how --------------------------------------------------------------------------------------------------------

    def _server(self) -> int:
        return self._random.randrange(len(self.fleet.ports))

    def _keep_up(self) -> None:
        """An archiver that finds no Redis when it starts ends with an error; nothing else ends it."""
        if self.fleet.keep_up() and NO_REDIS not in self.fleet.log("archive").splitlines()[-1]:
            self.problems.append(f"the archiver ended by itself: {self.fleet.log('archive')[-300:]}")

    def _expect(self, name: str, code: int) -> None:
        """Note that a command, whose log has this name, did not end with exit code 0."""
        if code:
            self.problems.append(f"{name} ended with exit code {code}: {self.fleet.log(name)[-300:]}")

    def _merging(self, *, allowed: bool) -> None:
        for client in self._clients:
            client.merges = allowed

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """No call is under way."""
        for client in self._clients:
            client.gate.clear()
        for client in self._clients:
            client.resting.wait(FIT_S)
        yield
        for client in self._clients:
            client.resting.clear()
            client.gate.set()

    def _answers(self) -> bool:
        for port in self.fleet.ports:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                Live(channel).consent("nobody", scoring=True)
        return True


def _count(live: Live, name: str) -> int:
    """Visits in the features of a customer; 0 if there is no such customer."""
    try:
        return round(live.count(name, "visit"))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return 0
