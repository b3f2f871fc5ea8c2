"""Clients that repeat each call until it is acknowledged, and note in the model what has to be true from then on.

No two clients share a customer, so what is right for a customer follows from the order of its own
calls. A call of which the client does not know whether it was carried out may still be carried out later, by a worker
that was paused. For events that changes nothing, since they have ids. A customer that may be erased, merged or withheld
a second time at any moment gets no further calls.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from tests.e2e.live import ALONE, Live, event
from tests.faults.model import Model
from tests.waiting import PATIENCE_S

ACTIVE: Final = 20
"""Customers of a client at a time."""
MAX_EVENTS: Final = 60
"""Events of a customer, well below the number at which a server caps them."""
TIMEOUT_S: Final = 2.0
PAUSE_S: Final = 0.02
AGAIN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
}
"""Codes of calls that are repeated. All others are a fault of the product."""


class Client(threading.Thread):
    """One client. It goes on until :attr:`over` is set, and rests while :attr:`gate` is not.

    Attributes:
        resting: Set while no call is under way and none begins.
        merges: Whether it may merge customers.
        label: First part of the ids of its events.
        acknowledged: Number of acknowledged calls, by kind, and of events.
        problems: What should not have happened.
    """

    def __init__(self, number: int, targets: Sequence[str], model: Model, lock: threading.Lock, seed: int) -> None:
        super().__init__(daemon=True)
        self._number, self._targets, self._model, self._lock = number, targets, model, lock
        self._random = random.Random(seed + number)
        self._made = 0
        self._events: Counter[str] = Counter()
        self._sent: list[Any] = []
        self._channel: grpc.Channel | None = None
        self.names: list[str] = []
        self.over, self.gate, self.resting = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        self.merges = True
        self.label = "event"
        self.acknowledged: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self) -> None:
        kinds: dict[Callable[[], None], int] = {
            self._record: 60, self._repeat: 5, self._erase: 25, self._merge: 4, self._withhold: 2,
        }  # fmt: skip
        self._connect()
        while not self.over.is_set():
            self.resting.clear()
            if not self.gate.is_set():
                self.resting.set()
                self.gate.wait(0.05)
                continue
            while len(self.names) < ACTIVE:
                self._made += 1
                self.names.append(f"shopper-{self._number}-{self._made}")
            self._random.choices(list(kinds), list(kinds.values()))[0]()
        self.resting.set()
        if self._channel is not None:
            self._channel.close()

    # --- calls ------------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        names = self._random.choices(self.names, k=self._random.randint(1, 16))
        batch = [event(name, "visit", event_id=self._event_id(), channel="web") for name in names]
        self._record_all(batch)
        self._sent = (self._sent + batch)[-50:]
        self._events.update(names)
        for name in names:
            if self._events[name] >= MAX_EVENTS:
                self._retire(name)

    def _repeat(self) -> None:
        """Events that were acknowledged before, as from a queue that delivers twice."""
        if self._sent:
            self._record_all(self._random.choices(self._sent, k=4))

    def _record_all(self, batch: Sequence[Any]) -> None:
        self._call("events", lambda live: live.record(*batch, timeout=TIMEOUT_S))
        with self._lock:
            for each in batch:
                self._model.record(each.customer_id, each.event_id, each.event_time.ToNanoseconds() / 1e9)
        self.acknowledged["events"] += len(batch)

    def _erase(self) -> None:
        name = self._random.choice(self.names)
        certain = self._call("erasures", lambda live: live.delete(name, timeout=TIMEOUT_S))
        with self._lock:
            self._model.erase(name, time.time())
        if not certain or self._random.random() < 0.8:
            self._retire(name)

    def _merge(self) -> None:
        if not self.merges:
            return
        alias, root = self._random.sample(self.names, 2)
        certain = self._call("merges", lambda live: live.merge(alias, root, timeout=TIMEOUT_S))
        with self._lock:
            self._model.merge(alias, root)
        self._retire(alias)
        if not certain:
            self._retire(root)

    def _withhold(self) -> None:
        """Consent is withheld; events after it are not recorded."""
        name = self._random.choice(self.names)
        certain = self._call("consents", lambda live: live.consent(name, timeout=TIMEOUT_S, scoring=False))
        with self._lock:
            self._model.consent(name, allowed=False)
        if certain:
            self._record_all([event(name, "visit", event_id=self._event_id(), channel="web")])
        self._retire(name)

    # --- how --------------------------------------------------------------------------------------------------------

    def _call(self, kind: str, call: Callable[[Live], Any]) -> bool:
        """Repeat a call until it is acknowledged; whether the first attempt was."""
        certain, end = True, time.monotonic() + PATIENCE_S
        while True:
            try:
                call(Live(self._channel))  # type: ignore[arg-type]
            except grpc.RpcError as error:
                if error.code() not in AGAIN:
                    self.problems.append(f"{kind}: {error.code()} {error.details()}")
                if time.monotonic() > end:
                    self.problems.append(f"{kind}: no answer for {PATIENCE_S:g} s, last {error.code()}")
                    return False
                certain = False
                time.sleep(PAUSE_S)
                self._connect()
            else:
                self.acknowledged[kind] += kind != "events"
                return certain

    def _event_id(self) -> str:
        self._made += 1
        return f"{self.label}-{self._number}-{self._made}"

    def _connect(self) -> None:
        """A new connection, to any of the servers."""
        if self._channel is not None:
            self._channel.close()
        self._channel = grpc.insecure_channel(self._random.choice(self._targets), [*ALONE, ("grpc.enable_retries", 0)])

    def _retire(self, name: str) -> None:
        if name in self.names:
            self.names.remove(name)
