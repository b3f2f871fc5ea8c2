"""What may be wrong with the times of events, seen in how many there are a day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.state.layout import DAY_S
from training.evidence import Finding

OLDEST_DAY: Final = 7_305
"""1990-01-01 as days since 1970. No shop has older events in a database, while lost dates become 1900 or 1970."""

LONE_GAP_DAYS: Final = 30
"""A few events so far from all others are a slip of the clock rather than a slow start."""

LONE_SHARE: Final = 0.001
"""At most so many of all events are a lone few. More of them are a history with a hole."""

DATES_ONLY: Final = 0.99
"""So many at midnight are dates without a time of day; a few odd ones may have come from elsewhere."""

MIDNIGHT_SHARE: Final = 0.10
"""Of times to the hour 4 % fall on midnight, so beyond this some have lost their time of day."""

EXPECTED_EVENTS: Final = 20
"""By chance nothing happens where 20 events are expected once in half a billion days: so silence means loss."""

LONG_GAP: Final = 3
"""Times the usual distance between days with events: a holiday is shorter, an outage of the collection is not."""

FALL: Final = 0.5
"""Trade seldom halves against each of the weeks before; half a load does."""

FALL_EVENTS: Final = 100
"""Half of a hundred is five standard deviations away, by chance of single events."""

FALL_WINDOWS_DAYS: Final = (28, 14, 7, 3)
"""Lengths of the end that are compared with the same length before, the longest first."""

FALL_REFERENCES: Final = (4, 8)
"""Least and most windows to compare with: fewer say little of what is usual, older ones are another season."""


@dataclass(frozen=True)
class Days:
    """Events by day, int64 [n] each: days since 1970 that have events, ascending; how many; how many at midnight UTC.

    older: events before OLDEST_DAY, which are in no day.
    """

    day: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    midnight: npt.NDArray[np.int64]
    older: int

    def body(self) -> slice:
        """The days without a lone few far before and far after all others."""
        distance, so_far = np.diff(self.day), np.cumsum(self.events)
        if not len(distance):
            return slice(0, len(self.day))
        far = distance >= max(LONE_GAP_DAYS, LONG_GAP * usual_distance(self.day))
        few = max(LONE_SHARE * so_far[-1], 1)
        before = np.flatnonzero(far & (so_far[:-1] <= few))
        after = np.flatnonzero(far & (so_far[-1] - so_far[:-1] <= few))
        first = int(before[-1]) + 1 if len(before) else 0
        last = int(after[0]) + 1 if len(after) else len(self.day)
        return slice(first, last) if first < last else slice(0, len(self.day))

    def only(self, part: slice) -> Days:
        """Some of the days."""
        return Days(self.day[part], self.events[part], self.midnight[part], 0)


def count_days(connection: duckdb.DuckDBPyConnection) -> Days:
    """Events of the view ``events`` by day."""
    found = connection.execute(
        f"""SELECT greatest(floor(t / {DAY_S}), {OLDEST_DAY - 1})::BIGINT AS day, count(*) AS events,
            count(*) FILTER (t % {DAY_S} = 0) AS midnight FROM events GROUP BY day ORDER BY day"""
    ).fetchnumpy()
    usable = found["day"] >= OLDEST_DAY
    day, events, midnight = (np.asarray(found[name], dtype=np.int64) for name in ("day", "events", "midnight"))
    return Days(day[usable], events[usable], midnight[usable], int(events[~usable].sum()))


def audit_times(days: Days) -> Iterator[Finding]:
    """Everything that the days show."""
    total = int(days.events.sum()) + days.older
    if days.older:
        yield Finding(
            severity="warning",
            check="out of range",
            where="events.event_time",
            message=f"{days.older:,} events ({days.older / total:.1%}) are older than 1990",
            mend="look how the time is converted (seconds or milliseconds, a missing date), or leave them out in SQL",
            share=days.older / total,
        )
    if not len(days.day):
        return
    body = days.body()
    yield from _lone(days, body, total)
    body_days = days.only(body)
    yield from _midnight(body_days)
    yield from _gaps(body_days)
    yield from _fall(body_days)


def _lone(days: Days, body: slice, total: int) -> Iterator[Finding]:
    for side, part, edge in (
        ("before", slice(0, body.start), body.start),
        ("after", slice(body.stop, None), body.stop - 1),
    ):
        lone = int(days.events[part].sum())
        if lone:
            yield Finding(
                severity="warning",
                check="lone events",
                where="events.event_time",
                message=f"{lone:,} events lie {side} {iso_day(days.day[edge])}, far from all others",
                mend="leave them out in SQL if their times are wrong: cut-offs are laid out between the first event "
                "and the last",
                share=lone / total,
            )


def _midnight(days: Days) -> Iterator[Finding]:
    share = float(days.midnight.sum() / days.events.sum())
    if share >= DATES_ONLY:
        yield Finding(
            severity="note",
            check="dates only",
            where="events.event_time",
            message=f"{share:.1%} of the events are at midnight: these are dates without a time of day",
            mend="select the time as well if the shop has it; half-lives below a day mean nothing here",
            share=share,
        )
    elif share > MIDNIGHT_SHARE:
        yield Finding(
            severity="warning",
            check="dates only",
            where="events.event_time",
            message=f"{share:.1%} of the events are at midnight, the others are not: some have lost their time of day",
            mend="look which table or type of events they come from, and select their time as well",
            share=share,
        )


def _gaps(days: Days) -> Iterator[Finding]:
    """Days without events, where so long a silence is not usual."""
    if len(days.day) < 2:  # noqa: PLR2004 - a distance needs two days
        return
    distance, usual = np.diff(days.day), usual_distance(days.day)
    span = days.day[-1] - days.day[0] + 1
    expected = (distance - usual) * days.events.sum() / span
    silent = (distance > usual) & (expected >= EXPECTED_EVENTS)
    long = silent & (distance > LONG_GAP * usual)
    for severity, found in (("warning", long), ("note", silent & ~long)):
        if not found.any():
            continue
        longest = int(np.argmax(np.where(found, distance, 0)))
        empty = int((distance[found] - 1).sum())
        yield Finding(
            severity="warning" if severity == "warning" else "note",
            check="gap",
            where="events.event_time",
            message=f"{empty:,} days amid the data are without any event, in {found.sum():,} gaps, the longest from "
            f"{iso_day(days.day[longest] + 1)} to {iso_day(days.day[longest + 1] - 1)}",
            mend="load what is missing, unless the shop was closed: to the models everybody stayed away",
            share=empty / float(span),
        )


def _fall(days: Days) -> Iterator[Finding]:
    """The end, without its last day, which may be unfinished, against the same length before."""
    daily = np.zeros(days.day[-1] - days.day[0] + 1, dtype=np.int64)
    daily[days.day - days.day[0]] = days.events
    so_far = np.concatenate([[0], np.cumsum(daily[:-1])])
    least, most = FALL_REFERENCES
    for length in FALL_WINDOWS_DAYS:
        step = max(7, length)  # the same days of the week
        ends = len(so_far) - 1 - step * np.arange(most + 1)
        ends = ends[ends >= length]
        if len(ends) <= least:
            continue
        window, *before = (so_far[ends] - so_far[ends - length]).tolist()
        usual = float(np.median(before))
        if usual >= FALL_EVENTS and window < FALL * usual and window < min(before):
            yield Finding(
                severity="warning",
                check="falling volume",
                where="events.event_time",
                message=f"the last {length} whole days hold {window / usual:.0%} of the events that such a time "
                "usually holds",
                mend="load the end again, or leave it out in SQL: an unfinished load looks like customers who leave",
                share=window / usual,
            )
            return


def usual_distance(day: npt.NDArray[np.int64]) -> float:
    """Days from one day with events to the next, as 95 % of them are or less."""
    return float(np.quantile(np.diff(day), 0.95, method="inverted_cdf"))


def iso_day(day: float) -> str:
    """A day since 1970 as text."""
    return datetime.fromtimestamp(float(day) * DAY_S, UTC).strftime("%Y-%m-%d")
