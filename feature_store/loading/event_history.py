"""All that is known offline: the source up to a time, and what came in live and the source does not have.

The union is by ``event_id`` where the source has ids. Where it has none, it is taken to have everything up to its time,
except what was recorded after the load had begun; and nothing that came in live, where its times are shifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.archive.reader import Snapshot, holds_archive, read_archive
from feature_store.archive.replay import Aliases, replay
from feature_store.errors import InputError
from feature_store.offline.source import LOG_ID
from feature_store.offline.store import OfflineStore
from feature_store.online.store import StateWriter
from feature_store.sql import fill_table
from feature_store.state.layout import Floats, StateLayout

LIVE: Final = {
    "seq": "BIGINT",
    "n": "INTEGER",
    "customer_id": "VARCHAR",
    "t": "DOUBLE",
    "event_type": "VARCHAR",
    "amount": "DOUBLE",
    "duration_s": "DOUBLE",
    "event_id": "VARCHAR",
}
"""Columns of live events, under the ids that they were sent with."""
AT_ONCE: Final = 10_000


@dataclass(frozen=True)
class Cut:
    """What a load takes from the source, and when.

    as_of: unix seconds in the source's own time; shift: seconds by which its times are moved; position: of the newest
    commit as the load begins; alone: what came in live is not meant to be there as well.
    """

    as_of: float
    shift: float
    position: int
    alone: bool = False

    @property
    def moment(self) -> float:
        """``as_of`` in the time of live events."""
        return self.as_of + self.shift


@dataclass(frozen=True)
class Expected:
    """States that customers should have: ids ``[n]`` ascending, as_of ``[n]`` unix seconds, slots ``[n, slots]``."""

    customer_ids: npt.NDArray[np.object_]
    as_of: Floats
    slots: Floats


class History:
    """The source, and the live events of one Redis up to a commit."""

    def __init__(self, source: OfflineStore, redis: StateWriter, folder: Path | None) -> None:
        """``folder``: the archive; InputError where there is one, and this is not it."""
        self._source: Final = source
        self._sql: Final = source.connection
        self.position, self.aliases = self._read_live(redis, folder)
        fill_table(self._sql, "aliases", {"alias": "VARCHAR", "root": "VARCHAR"}, list(self.aliases.roots.items()))
        source.apply_aliases()
        ((ids,),) = self._sql.execute("SELECT count(event_id) FROM events").fetchall()
        self.has_ids: Final = bool(ids)

    def expected(self, layout: StateLayout, cut: Cut) -> Expected:
        """The states that a load by this cut makes, with everything that was recorded before and since."""
        self._sql.execute(
            f"""CREATE OR REPLACE VIEW past AS
                SELECT coalesce(root, customer_id) AS customer_id, t + {cut.shift!r} AS t, event_type, amount,
                    duration_s, event_id FROM events LEFT JOIN aliases ON alias = customer_id WHERE t <= {cut.as_of!r};
            CREATE OR REPLACE VIEW recorded AS
                SELECT coalesce(root, customer_id) AS customer_id, t, event_type, amount, duration_s,
                    coalesce(event_id, {LOG_ID}) AS event_id, seq FROM live LEFT JOIN aliases ON alias = customer_id;
            CREATE OR REPLACE TABLE added AS SELECT * EXCLUDE (seq) FROM recorded {self._not_in_source(cut)};
            CREATE OR REPLACE VIEW joined AS FROM past UNION ALL FROM added"""
        )
        ((newest,),) = self._sql.execute("SELECT max(t) FROM added").fetchall()
        reference = max(cut.moment, newest or cut.moment)
        states = self._source.states(layout, reference, "joined")
        as_of = self._as_of(states.customer_ids, cut)
        return Expected(states.customer_ids, as_of, layout.advance(states.slots, as_of - reference))

    def in_source(self, event_ids: Sequence[str]) -> set[tuple[str, str]]:
        """The (customer, event id) pairs that the last cut's source has of these ids."""
        if not event_ids or not self.has_ids:
            return set()
        fill_table(self._sql, "asked", {"event_id": "VARCHAR"}, [(event_id,) for event_id in event_ids])
        return set(
            self._sql.execute("SELECT customer_id, event_id FROM past SEMI JOIN asked USING (event_id)").fetchall()
        )

    def ids_since(self, moment: float) -> dict[str, list[tuple[float, str, str]]]:
        """Of the last cut's source, by customer: time, type and id of the events that have one, from ``moment`` on."""
        found: dict[str, list[tuple[float, str, str]]] = {}
        query = "SELECT customer_id, t, event_type, event_id FROM past WHERE event_id IS NOT NULL AND t >= $moment"
        for customer_id, *event in self._sql.execute(query, {"moment": moment}).fetchall():
            found.setdefault(customer_id, []).append((event[0], event[1], event[2]))
        return found

    def _not_in_source(self, cut: Cut) -> str:
        if cut.alone:
            return "WHERE false"
        if self.has_ids:
            return "ANTI JOIN past USING (customer_id, event_id)"
        return "" if cut.shift else f"WHERE t > {cut.moment!r} OR seq > {cut.position}"

    def _as_of(self, ids: npt.NDArray[np.object_], cut: Cut) -> Floats:
        """The load's time, or that of a newer event; of who came in live only, the time of the newest event."""
        live = dict(self._sql.execute("SELECT customer_id, max(t) FROM added GROUP BY customer_id").fetchall())
        loaded = {name for (name,) in self._sql.execute("SELECT DISTINCT customer_id FROM past").fetchall()}
        loaded |= self._source.with_attributes
        return np.array([max(cut.moment if name in loaded else -np.inf, live.get(name, -np.inf)) for name in ids])

    def _read_live(self, redis: StateWriter, folder: Path | None) -> tuple[int, Aliases]:
        """Fill the table of live events from the archive and the log; the newest commit's position, and aliases."""
        while True:
            position = redis.log_position()
            start, aliases = self._read_folder(folder, archived=bool(redis.archived()))
            if (redis.archived() or 0) > start and folder is None:
                raise InputError("events are archived: name the archive's folder with --archive")
            entries = redis.log(start + 1, position)
            while some := list(islice(entries, AT_ONCE)):
                self._add(some, aliases)
            if (redis.archived() or 0) <= start:
                return position, aliases
            if folder is not None and read_archive(folder, lambda now: now.position) <= start:
                raise InputError(f"archive {folder} lacks events that are archived: name the folder that has them all")
            # Entries were moved to the archive meanwhile: they may be missing in what was read.

    def _read_folder(self, folder: Path | None, *, archived: bool) -> tuple[int, Aliases]:
        fill_table(self._sql, "live", LIVE, [])
        if folder is None or not (holds_archive(folder) or archived):
            return 0, Aliases({})

        def load(archived: Snapshot) -> tuple[int, Aliases]:
            names = ", ".join(LIVE)
            self._sql.execute("DELETE FROM live")
            self._sql.execute(f"INSERT INTO live SELECT {names} FROM ({archived.events_sql}) WHERE mark = ''")
            return archived.position, Aliases(archived.aliases())

        return read_archive(folder, load)

    def _add(self, entries: Sequence[tuple[int, bytes]], aliases: Aliases) -> None:
        changes = replay(entries, aliases)
        if changes.erased:
            fill_table(self._sql, "erased", {"customer_id": "VARCHAR"}, [(name,) for name in changes.erased])
            self._sql.execute("DELETE FROM live WHERE customer_id IN (FROM erased)")
        fill_table(self._sql, "more", LIVE, [live_row(row) for row in changes.rows if not row[-1]])
        self._sql.execute("INSERT INTO live FROM more")


def live_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The columns LIVE of a row of the log."""
    seq, n, customer_id, t, event_type, amount, duration_s, _item_id, _channel, event_id, *_ = row
    return seq, n, customer_id, t, event_type, amount, duration_s, event_id
