"""What a shop should know after a history. It shares no code with the product: plain dictionaries, no states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Model:
    """Events by id, who is whose alias, when ids were erased, and who withheld consent.

    Attributes:
        events: By event id, the id that the event was sent with, and its time.
        roots: By alias, the customer's id.
        erased: By id, the time of the erasure.
        withheld: Customers that do not allow scoring.
    """

    events: dict[str, tuple[str, float]] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    erased: dict[str, float] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)

    def copy(self) -> Model:
        return Model(dict(self.events), dict(self.roots), dict(self.erased), set(self.withheld))

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    def ids(self, name: str) -> set[str]:
        """All ids of the customer that an id belongs to."""
        root = self.root(name)
        return {root} | {alias for alias, other in self.roots.items() if other == root}

    def accepts(self, name: str, event_id: str, t: float) -> bool:
        """Whether an event is counted when it comes in."""
        bound = max((self.erased.get(one, -1) for one in self.ids(name)), default=-1)
        return event_id not in self.events and self.root(name) not in self.withheld and t > bound

    def record(self, name: str, event_id: str, t: float) -> None:
        if self.accepts(name, event_id, t):
            self.events[event_id] = name, t

    def merge(self, alias: str, root: str) -> None:
        if self.root(alias) == alias and self.root(root) != alias:
            stays = self.root(root)
            if {alias, stays} & self.withheld:
                self.withheld = self.withheld - {alias} | {stays}
            self.roots |= dict.fromkeys(self.ids(alias), stays)

    def erase(self, name: str, now: float) -> None:
        ids = self.ids(name)
        self.events = {key: event for key, event in self.events.items() if event[0] not in ids}
        self.roots = {alias: root for alias, root in self.roots.items() if alias not in ids}
        self.erased |= dict.fromkeys(ids, now)
        self.withheld -= ids

    def consent(self, name: str, *, allowed: bool) -> None:
        root = self.root(name)
        self.withheld = self.withheld - {root} if allowed else self.withheld | {root}

    def counts(self) -> Counter[str]:
        """Number of events of each customer."""
        return Counter(self.root(name) for name, _ in self.events.values())

    def after_loss(self, kept: Model) -> Model:
        """What is right after Redis lost all that came after ``kept``, all of which was archived.

        Events, erasures and consents come back from the archive. Merges do not, so there must be none among them.
        """
        after = self.copy()
        after.roots = {
            alias: root
            for alias, root in kept.roots.items()
            if self.erased.get(alias) == kept.erased.get(alias) and self.erased.get(root) == kept.erased.get(root)
        }
        return after
