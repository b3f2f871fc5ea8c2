"""Everything known offline: the source up to a time, and the live events that are not in the source.

If the source has event ids, a live event is left out if the source has its id. If it has none, it is assumed to contain
all live events up to its time, except those recorded after the load began; if its times are shifted, none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.archive.reader import FIRST_OF_ID, ArchiveManifest, ArchiveSnapshot, holds_archive, read_archive
from feature_store.archive.replay import Aliases, EventRow, replay
from feature_store.errors import InputError
from feature_store.offline.source import LOG_ID, LOG_ID_PREFIX
from feature_store.offline.store import OfflineStore
from feature_store.online.epochs import common_position
from feature_store.online.erased_customers import ErasedCustomers
from feature_store.online.event_log import EventLog
from feature_store.sql import fill_table, literal
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
"""DuckDB types of the columns of live events; ids as they were sent."""
CHUNK: Final = 10_000
"""Log entries read at a time."""


@dataclass(frozen=True)
class LoadPoint:
    """What a load takes from the source, and when.

    Attributes:
        as_of: Unix seconds in the source's own time, up to which events are taken.
        shift: Seconds by which the source's times are moved.
        position: Position of the newest commit when the load began.
        source_only: Live events are left out.
    """

    as_of: float
    shift: float
    position: int
    source_only: bool = False

    @property
    def live_as_of(self) -> float:
        """``as_of`` in the time of live events."""
        return self.as_of + self.shift


@dataclass(frozen=True)
class ComputedStates:
    """States computed from a history: ids ``[n]`` ascending, as_of ``[n]`` unix seconds, slots ``[n, slots]``."""

    customer_ids: npt.NDArray[np.object_]
    as_of: Floats
    slots: Floats


class EventHistory:
    """The source, and the live events of one Redis up to a commit (``position``)."""

    def __init__(
        self, source: OfflineStore, log: EventLog, folder: Path | None, erased: ErasedCustomers | None = None
    ) -> None:
        """Read all live events.

        Args:
            source: The source.
            log: The log in Redis.
            folder: The archive; None if there is none.
            erased: Customers whose events up to their erasure, and whose attributes, are left out of the source. They
                must have been read after a load that needs later erasures has announced itself.

        Raises:
            InputError: There is an archive, and it is not in this folder.
        """
        self._source: Final = source
        self._sql: Final = source.connection
        self.position, self.aliases = self._read_live(log, folder)
        fill_table(self._sql, "aliases", {"alias": "VARCHAR", "root": "VARCHAR"}, list(self.aliases.roots.items()))
        self.erased: Final = erased or ErasedCustomers()
        self._leave_out_erased()
        source.apply_aliases()
        ((ids,),) = self._sql.execute("SELECT count(event_id) FROM events").fetchall()
        self.has_ids: Final = bool(ids)

    def states(self, layout: StateLayout, point: LoadPoint) -> ComputedStates:
        """The states of all customers: the source up to the load point, and live events before and after it."""
        self._sql.execute(
            f"""CREATE OR REPLACE VIEW past AS
                SELECT coalesce(root, customer_id) AS customer_id, t + {point.shift!r} AS t, event_type, amount,
                    duration_s, event_id FROM events LEFT JOIN aliases ON alias = customer_id
                WHERE t <= {point.as_of!r} AND {self._not_erased(point)};
            CREATE OR REPLACE VIEW recorded AS
                SELECT coalesce(root, customer_id) AS customer_id, t, event_type, amount, duration_s,
                    coalesce(event_id, {LOG_ID}) AS event_id, seq FROM live LEFT JOIN aliases ON alias = customer_id;
            CREATE OR REPLACE TABLE added AS SELECT * EXCLUDE (seq) FROM recorded {self._not_in_source(point)};
            CREATE OR REPLACE VIEW joined AS FROM past UNION ALL FROM added"""
        )
        ((newest,),) = self._sql.execute("SELECT max(t) FROM added").fetchall()
        reference = max(point.live_as_of, newest or point.live_as_of)
        states = self._source.states(layout, reference, "joined")
        as_of = self._as_of(states.customer_ids, point)
        return ComputedStates(states.customer_ids, as_of, layout.advance(states.slots, as_of - reference))

    def in_source(self, event_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Pairs of customer and event id that the source has, among these ids, up to the last load point."""
        if not event_ids or not self.has_ids:
            return set()
        fill_table(self._sql, "requested", {"event_id": "VARCHAR"}, [(event_id,) for event_id in event_ids])
        return set(
            self._sql.execute("SELECT customer_id, event_id FROM past SEMI JOIN requested USING (event_id)").fetchall()
        )

    def source_events_since(self, moment: float) -> dict[str, list[tuple[float, str, str]]]:
        """Time, type and id of the source's events from ``moment`` to the last load point that have an id.

        They are grouped by customer.
        """
        by_customer: dict[str, list[tuple[float, str, str]]] = {}
        events = "past"
        if self._manifest.cuts:  # Redis may have lost what it knew of live events
            events = f"(FROM past UNION ALL FROM added WHERE NOT starts_with(event_id, {literal(LOG_ID_PREFIX)}))"
        query = f"SELECT customer_id, t, event_type, event_id FROM {events} WHERE event_id IS NOT NULL AND t >= $moment"
        for customer_id, *event in self._sql.execute(query, {"moment": moment}).fetchall():
            by_customer.setdefault(customer_id, []).append((event[0], event[1], event[2]))
        return by_customer

    def _leave_out_erased(self) -> None:
        """Fill the table of erased ids that the source has, and remove their attributes."""
        tables = ["events"] + ["attributes"] * bool(self._source.attribute_columns)
        query = " UNION ".join(f"SELECT customer_id FROM {table}" for table in tables)
        ids = (name for (name,) in self._sql.execute(query).fetchall()) if self.erased.times else ()
        rows = list(self.erased.among(ids).items())
        fill_table(self._sql, "erased_in_source", {"customer_id": "VARCHAR", "erased_at": "DOUBLE"}, rows)
        if self._source.attribute_columns:
            self._sql.execute("DELETE FROM attributes WHERE customer_id IN (SELECT customer_id FROM erased_in_source)")

    def _not_erased(self, point: LoadPoint) -> str:
        """SQL condition on an event of the source: its customer was not erased after it."""
        # Shifted times say nothing about what was before the erasure.
        after = "" if point.shift else " AND events.t <= erased_in_source.erased_at"
        return (
            "NOT EXISTS (SELECT 1 FROM erased_in_source "
            f"WHERE erased_in_source.customer_id = events.customer_id{after})"
        )

    def _not_in_source(self, point: LoadPoint) -> str:
        if point.source_only:
            return "WHERE false"
        if self.has_ids:
            return "ANTI JOIN past USING (customer_id, event_id)"
        return (
            ""
            if point.shift
            else f"WHERE t > {point.live_as_of!r} OR seq > {point.position + self._manifest.offset_at(point.position)}"
        )

    def _as_of(self, ids: npt.NDArray[np.object_], point: LoadPoint) -> Floats:
        """Per customer, the time of the load or of a newer live event; only the latter if it is not in the source."""
        newest = dict(self._sql.execute("SELECT customer_id, max(t) FROM added GROUP BY customer_id").fetchall())
        in_source = {name for (name,) in self._sql.execute("SELECT DISTINCT customer_id FROM past").fetchall()}
        in_source |= self._source.with_attributes
        return np.array(
            [max(point.live_as_of if name in in_source else -np.inf, newest.get(name, -np.inf)) for name in ids]
        )

    def _read_live(self, log: EventLog, folder: Path | None) -> tuple[int, Aliases]:
        """Fill the table of live events from the archive and the log; the newest commit's position, and the aliases."""
        while True:
            position = log.position()
            start, aliases = self._read_folder(folder, archived=bool(log.archived()))
            self._check_lineage(log)
            if (log.archived() or 0) > start and folder is None:
                raise InputError("events are archived: name the archive's folder with --archive")
            entries = log.entries(start + 1, position)
            while chunk := list(islice(entries, CHUNK)):
                self._add(chunk, aliases)
            if self._manifest.cuts:
                self._sql.execute(f"CREATE OR REPLACE TABLE live AS FROM live QUALIFY {FIRST_OF_ID}")
            if (log.archived() or 0) <= start:
                return position, aliases
            if folder is not None and read_archive(folder, lambda now: now.position) <= start:
                raise InputError(
                    f"archive {folder} lacks events that are archived: name the folder of the archive that has them"
                )
            # Entries were moved to the archive in the meantime, and may be missing from what was read.

    def _check_lineage(self, log: EventLog) -> None:
        """Raise InputError if Redis has lost commits that are archived."""
        manifest = self._manifest
        epochs, last = log.epochs(), log.position()
        if manifest.epochs and common_position(manifest.epochs, manifest.position, epochs, last) < manifest.position:
            raise InputError(
                "Redis has lost commits that are archived: run 'tidemark archive' with --once, which restores erasures "
                "and consents, and then start again"
            )

    def _read_folder(self, folder: Path | None, *, archived: bool) -> tuple[int, Aliases]:
        fill_table(self._sql, "live", LIVE, [])
        self._manifest = ArchiveManifest()
        if folder is None or not (holds_archive(folder) or archived):
            return 0, Aliases({})

        def load(snapshot: ArchiveSnapshot) -> tuple[int, Aliases]:
            self._manifest = snapshot.manifest
            names = ", ".join(LIVE)
            self._sql.execute("DELETE FROM live")
            self._sql.execute(f"INSERT INTO live SELECT {names} FROM ({snapshot.events_sql}) WHERE mark = ''")
            return snapshot.position, Aliases(snapshot.aliases(self._sql))

        return read_archive(folder, load)

    def _add(self, entries: Sequence[tuple[int, bytes]], aliases: Aliases) -> None:
        changes = replay(entries, aliases, offset=self._manifest.offset_at(self._manifest.position + 1))
        if changes.erased:
            fill_table(self._sql, "erased", {"customer_id": "VARCHAR"}, [(name,) for name in changes.erased])
            self._sql.execute("DELETE FROM live WHERE customer_id IN (FROM erased)")
        fill_table(self._sql, "more", LIVE, [_live_values(row) for row in changes.rows if not row.event.mark])
        self._sql.execute("INSERT INTO live FROM more")


def _live_values(row: EventRow) -> tuple[Any, ...]:
    """Values of the columns LIVE."""
    event = row.event
    return (
        row.seq,
        row.n,
        event.customer_id,
        event.t,
        event.event_type,
        event.amount,
        event.duration_s,
        event.event_id,
    )
