"""What entries of the event log change in an archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from feature_store.state.log_entries import (
    LoggedConsent,
    LoggedErasure,
    LoggedEvent,
    LoggedMerge,
    decode_entry,
    malformed,
)
from feature_store.state.tombstone import hash_customer_id

CONSENT: Final = "consent"
ERASED: Final = "erased"
MERGED: Final = "merged"
RECORD_MARKS: Final = (CONSENT, ERASED, MERGED)
"""Marks of rows that are no events: a customer's consent (``amount`` and ``duration_s`` are 1 where scoring and
automated responses are allowed), an erasure (the keyed hash of the id, and the time), and a merge (of ``customer_id``
into ``text``). With them a Redis that lost data can be repaired."""


class EventRow(NamedTuple):
    """An event of the log.

    Attributes:
        seq: Position of its entry.
        n: Index of its item in the entry.
    """

    seq: int
    n: int
    event: LoggedEvent

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of the archive's columns, ``event_time`` left out."""
        return (self.seq, self.n, *self.event)


class Aliases:
    """The other ids of customers: ``roots[alias]`` is a customer's id, never an alias itself."""

    def __init__(self, roots: Mapping[str, str]) -> None:
        self.roots: Final = dict(roots)
        self.changed = False
        self._aliases: Final[defaultdict[str, set[str]]] = defaultdict(set)
        for alias, root in roots.items():
            self._aliases[root].add(alias)

    def merge(self, alias: str, root: str) -> None:
        """Make ``alias`` and all its aliases other ids of ``root``; a repetition changes nothing.

        Raises:
            ValueError: It contradicts an earlier merge.
        """
        if (known_root := self.roots.get(alias)) == root:
            return
        if alias == root or root in self.roots or known_root is not None:
            raise ValueError("the merge contradicts an earlier one")
        names = {alias, *self._aliases.pop(alias, ())}
        self._aliases[root] |= names
        self.roots.update(dict.fromkeys(names, root))
        self.changed = True

    def erase(self, ids: Iterable[str]) -> None:
        """Forget every pair of alias and root that contains one of the ids."""
        for name in ids:
            for alias in self._aliases.pop(name, ()):
                del self.roots[alias]
                self.changed = True
            if (root := self.roots.pop(name, None)) is not None:
                self._aliases[root].discard(name)
                self.changed = True


@dataclass(frozen=True)
class Changes:
    """What entries change.

    Attributes:
        rows: Events to add.
        erased: Ids of which all earlier rows are to be deleted.
        records: Rows to add that are no events (RECORD_MARKS).
    """

    rows: list[EventRow]
    erased: set[str]
    records: list[EventRow] = field(default_factory=list)


def replay(
    entries: Sequence[tuple[int, bytes]], aliases: Aliases, *, erasure_key: bytes = b"", offset: int = 0
) -> Changes:
    """Go through log entries.

    Args:
        entries: (position, JSON), in order.
        aliases: Those known so far; changed as the entries say, and unusable after an error.
        erasure_key: Key of the hashes of erased customers.
        offset: What is added to a position to get a row's ``seq``.

    Raises:
        InputError: An entry is malformed. The message names its position, never its content.
    """
    rows: list[EventRow] = []
    records: list[EventRow] = []
    erased: dict[str, tuple[int, int]] = {}  # by id: the numbers of rows and records before its last erasure
    for position, data in entries:
        seq = position + offset
        for n, item in enumerate(decode_entry(position, data)):
            match item:
                case LoggedEvent():
                    rows.append(EventRow(seq, n, item))
                case LoggedConsent(name, scoring, automated_response):
                    allowed = float(scoring), float(automated_response)
                    records.append(_record(seq, n, CONSENT, name, amount=allowed[0], duration_s=allowed[1]))
                case LoggedMerge():
                    try:
                        aliases.merge(item.alias, item.root)
                    except ValueError as error:
                        raise malformed(position, f"item {n}: {error}") from None
                    records.append(_record(seq, n, MERGED, item.alias, text=item.root))
                case LoggedErasure():
                    aliases.erase(item.customer_ids)
                    erased.update(dict.fromkeys(item.customer_ids, (len(rows), len(records))))
                    if item.erased_at is not None:
                        for name in item.customer_ids:
                            hashed = hash_customer_id(erasure_key, name)
                            records.append(_record(seq, n, ERASED, hashed, t=item.erased_at))
    none = (0, 0)
    return Changes(
        [row for at, row in enumerate(rows) if at >= erased.get(row.event.customer_id, none)[0]],
        set(erased),
        [row for at, row in enumerate(records) if at >= erased.get(row.event.customer_id, none)[1]],
    )


def merge_record(seq: int, alias: str, root: str) -> EventRow:
    """The row of a merge whose log entry is not known any more."""
    return _record(seq, 0, MERGED, alias, text=root)


def erasure_record(seq: int, hashed: str, erased_at: float) -> EventRow:
    """The row of an erasure from before there was an archive."""
    return _record(seq, 0, ERASED, hashed, t=erased_at)


def consent_record(seq: int, customer_id: str, *, scoring: bool, automated_response: bool) -> EventRow:
    """The row of a consent from before there was an archive."""
    return _record(seq, 0, CONSENT, customer_id, amount=float(scoring), duration_s=float(automated_response))


def _record(seq: int, n: int, mark: str, customer_id: str, **values: Any) -> EventRow:
    """A row that is no event."""
    empty = LoggedEvent(customer_id, 0.0, "", None, None, None, None, None, None, mark)
    return EventRow(seq, n, empty._replace(**values))
