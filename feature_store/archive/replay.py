"""What entries of the event log change in an archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from feature_store.state.log_entries import LoggedErasure, LoggedEvent, LoggedMerge, decode_entry, malformed


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
    """What entries change: rows to add, and ids of which all earlier rows are to be deleted."""

    rows: list[EventRow]
    erased: set[str]


def replay(entries: Sequence[tuple[int, bytes]], aliases: Aliases) -> Changes:
    """Go through log entries.

    Args:
        entries: (position, JSON), in order.
        aliases: Those known so far; changed as the entries say, and unusable after an error.

    Raises:
        InputError: An entry is malformed. The message names its position, never its content.
    """
    rows: list[EventRow] = []
    erased: dict[str, int] = {}  # by id: the number of rows before its last erasure
    for seq, data in entries:
        for n, item in enumerate(decode_entry(seq, data)):
            match item:
                case LoggedEvent():
                    rows.append(EventRow(seq, n, item))
                case LoggedMerge():
                    try:
                        aliases.merge(item.alias, item.root)
                    except ValueError as error:
                        raise malformed(seq, f"item {n}: {error}") from None
                case LoggedErasure():
                    aliases.erase(item.customer_ids)
                    erased.update(dict.fromkeys(item.customer_ids, len(rows)))
    return Changes([row for at, row in enumerate(rows) if at >= erased.get(row.event.customer_id, 0)], set(erased))
