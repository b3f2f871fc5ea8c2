"""The log of live events: what its entries say, and what they change in an archive.

An entry is a JSON array of items that took effect together:

- ``["e", customer_id, t, event_type, amount, duration_s, item_id, channel, event_id, text, mark]``: an event at ``t``
  unix seconds. A mark says why it was accepted and yet not folded into a state; it is "" where it was.
- ``["m", alias, root]``: from here on ``alias`` is another name of ``root``, for events before and after.
- ``["d", [customer_id, …]]``: whatever was known of these ids before is forgotten; what follows starts anew.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from feature_store.errors import InputError

_TEXT: Final = (str,)
_NUMBER: Final = (float, int)
_NOTHING: Final = type(None)
_FIELDS: Final[tuple[tuple[type, ...], ...]] = (
    _TEXT,  # customer_id
    _NUMBER,  # t
    _TEXT,  # event_type
    (*_NUMBER, _NOTHING),  # amount
    (*_NUMBER, _NOTHING),  # duration_s
    *[(*_TEXT, _NOTHING)] * 4,  # item_id, channel, event_id, text
    _TEXT,  # mark
)
_YEAR_ONE: Final = -62_135_596_800.0
_YEAR_10_000: Final = 253_402_300_800.0
"""Times that others than DuckDB can read as well."""

Row = tuple[Any, ...]
"""``(seq, n, customer_id, t, event_type, amount, duration_s, item_id, channel, event_id, text, mark)``: an event, by
its entry and its index in it."""


class Aliases:
    """Which ids are other names of which: ``roots[alias]`` is a root, never an alias itself."""

    def __init__(self, roots: Mapping[str, str]) -> None:
        self.roots: Final = dict(roots)
        self.changed = False
        self._names: Final[defaultdict[str, set[str]]] = defaultdict(set)
        for alias, root in roots.items():
            self._names[root].add(alias)

    def merge(self, alias: str, root: str) -> None:
        """Make ``alias``, and what was an alias of it, another name of ``root``; ValueError where that makes no sense.

        To say the same again changes nothing.
        """
        if (known := self.roots.get(alias)) == root:
            return
        if alias == root or root in self.roots or known is not None:
            raise ValueError("the merge contradicts the aliases known before")
        names = {alias, *self._names.pop(alias, ())}
        self._names[root] |= names
        self.roots.update(dict.fromkeys(names, root))
        self.changed = True

    def erase(self, ids: Iterable[str]) -> None:
        """Forget every alias in which one of the ids stands, on either side."""
        for name in ids:
            for alias in self._names.pop(name, ()):
                del self.roots[alias]
                self.changed = True
            if (root := self.roots.pop(name, None)) is not None:
                self._names[root].discard(name)
                self.changed = True


@dataclass(frozen=True)
class Changes:
    """What entries change: rows to add, and ids of which all rows known before are to vanish."""

    rows: list[Row]
    erased: set[str]


def replay(entries: Sequence[tuple[int, bytes]], aliases: Aliases) -> Changes:
    """Go through ``(seq, JSON)`` entries in order, and change ``aliases`` as they say.

    InputError names the entry that is malformed, never what it holds; ``aliases`` must not be used after it.
    """
    rows: list[Row] = []
    erased: dict[str, int] = {}  # by id: how many rows there were before its last erasure
    for seq, data in entries:
        for n, item in enumerate(_items(seq, data)):
            try:
                match item:
                    case ["e", *fields]:
                        rows.append((seq, n, *_event(fields)))
                    case ["m", str(alias), str(root)]:
                        aliases.merge(alias, root)
                    case ["d", [*ids]] if all(isinstance(name, str) for name in ids):
                        aliases.erase(ids)
                        erased.update(dict.fromkeys(ids, len(rows)))
                    case _:
                        raise ValueError("it is no event, merge or erasure")  # noqa: TRY301  # named like the others
            except (ValueError, OverflowError) as error:
                raise InputError(f"entry {seq} of the log is malformed: item {n}: {error}") from None
    return Changes([row for at, row in enumerate(rows) if at >= erased.get(row[2], 0)], set(erased))


def _items(seq: int, data: bytes) -> list[Any]:
    """The items of an entry. A cause is never chained: it would hold the entry."""
    try:
        items = json.loads(data)
        if b"\\" in data:  # half of a surrogate pair can be written in JSON, and not be stored
            json.dumps(items, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InputError(f"entry {seq} of the log is malformed: it is not JSON in UTF-8") from None
    if not isinstance(items, list):
        raise InputError(f"entry {seq} of the log is malformed: it is not an array of items")
    return items


def _event(fields: list[Any]) -> Row:
    """The fields of an event, checked, numbers as floats."""
    if len(fields) != len(_FIELDS) or any(type(x) not in kinds for x, kinds in zip(fields, _FIELDS, strict=True)):
        raise ValueError("the event's fields are not those of an event")
    customer_id, t, event_type, *numbers, item_id, channel, event_id, text, mark = fields
    amount, duration_s = (None if x is None else float(x) for x in numbers)
    if not (_YEAR_ONE <= t < _YEAR_10_000):
        raise ValueError("the event's time is out of range")
    if not (math.isfinite(amount or 0.0) and math.isfinite(duration_s or 0.0)):
        raise ValueError("a number of the event is not finite")
    return (customer_id, float(t), event_type, amount, duration_s, item_id, channel, event_id, text, mark)
