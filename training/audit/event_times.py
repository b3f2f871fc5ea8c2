"""Checks on the times of events, made on the number of events per day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.state.layout import DAY_S
from feature_store.timestamps import utc_date
from training.evidence import Finding

OLDEST_DAY: Final = 7_305
"""1990-01-01 in days since 1970. No shop has older events in a database, whereas lost dates become 1900 or 1970."""

LONE_GAP_DAYS: Final = 30
"""A few events that are this far from all others have wrong times; they are no slow start of the shop."""

LONE_SHARE: Final = 0.001
"""Maximum share of all events that counts as isolated. If there are more, the history has a gap instead."""

DATES_ONLY: Final = 0.99
"""If this share of the events is at midnight, the times are dates only; the others may come from another table."""

MIDNIGHT_SHARE: Final = 0.10
"""Of times rounded to the hour 4 % are at midnight. Above this share, some events have lost their time of day."""

EXPECTED_EVENTS: Final = 20
"""Expected number of events above which an empty day means lost data: by chance it has a probability of 2e-9."""

LONG_GAP: Final = 3
"""Multiple of the usual distance between days with events: holidays are shorter, outages of the collection are not."""

FALL: Final = 0.5
"""Sales seldom fall to half of each of the weeks before; an unfinished load does."""

FALL_EVENTS: Final = 100
"""Minimum usual number of events: half of 100 is five standard deviations below it for independent events."""

FALL_WINDOWS_DAYS: Final = (28, 14, 7, 3)
"""Lengths of the last window, which is compared with windows of the same length before it, the longest first."""

FALL_REFERENCES: Final = (4, 8)
"""Minimum and maximum number of windows to compare with: fewer do not show what is usual, older ones are of another
season."""


@dataclass(frozen=True)
class Days:
    """Number of events per day, for the days that have any.

    Attributes:
        day: Days since 1970, ascending, int64 ``[n]``.
        events: Number of events, int64 ``[n]``.
        midnight: Number of events at 00:00 UTC, int64 ``[n]``.
        older: Number of events before OLDEST_DAY, which are not counted in any day.
    """

    day: npt.NDArray[np.int64]
    events: npt.NDArray[np.int64]
    midnight: npt.NDArray[np.int64]
    older: int

    def body(self) -> slice:
        """The days without isolated events far before or far after all others."""
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
        """A part of the days."""
        return Days(self.day[part], self.events[part], self.midnight[part], 0)


def count_days(connection: duckdb.DuckDBPyConnection) -> Days:
    """Count the events of the view ``events`` by day."""
    counts = connection.execute(
        f"""SELECT greatest(floor(t / {DAY_S}), {OLDEST_DAY - 1})::BIGINT AS day, count(*) AS events,
            count(*) FILTER (t % {DAY_S} = 0) AS midnight FROM events GROUP BY day ORDER BY day"""
    ).fetchnumpy()
    usable = counts["day"] >= OLDEST_DAY
    day, events, midnight = (np.asarray(counts[name], dtype=np.int64) for name in ("day", "events", "midnight"))
    return Days(day[usable], events[usable], midnight[usable], int(events[~usable].sum()))


def audit_times(days: Days) -> Iterator[Finding]:
    """Check the times: too old, isolated, at midnight, gaps and a falling volume at the end."""
    total = int(days.events.sum()) + days.older
    if days.older:
        yield Finding(
            severity="warning",
            check="out of range",
            where="events.event_time",
            message=f"{days.older:,} events ({days.older / total:.1%}) are older than 1990",
            fix="check how the time is converted (seconds or milliseconds, missing dates), or leave these events out "
            "in SQL",
            share=days.older / total,
        )
    if not len(days.day):
        return
    body = days.body()
    yield from _isolated(days, body, total)
    body_days = days.only(body)
    yield from _midnight(body_days)
    yield from _gaps(body_days)
    yield from _fall(body_days)


def _isolated(days: Days, body: slice, total: int) -> Iterator[Finding]:
    for side, part, edge in (
        ("before", slice(0, body.start), body.start),
        ("after", slice(body.stop, None), body.stop - 1),
    ):
        isolated = int(days.events[part].sum())
        if isolated:
            yield Finding(
                severity="warning",
                check="lone events",
                where="events.event_time",
                message=f"{isolated:,} events are {side} {iso_day(days.day[edge])}, far from all others",
                fix="leave them out in SQL if their times are wrong: training places its cut-offs between the first "
                "and the last event",
                share=isolated / total,
            )


def _midnight(days: Days) -> Iterator[Finding]:
    share = float(days.midnight.sum() / days.events.sum())
    if share >= DATES_ONLY:
        yield Finding(
            severity="note",
            check="dates only",
            where="events.event_time",
            message=f"{share:.1%} of the events are at midnight: the source has dates without a time of day",
            fix="select the time of day as well if the shop has it; half-lives below one day have no meaning here",
            share=share,
        )
    elif share > MIDNIGHT_SHARE:
        yield Finding(
            severity="warning",
            check="dates only",
            where="events.event_time",
            message=f"{share:.1%} of the events are at midnight and the others are not: some have lost their time of "
            "day",
            fix="find the table or event type that they come from, and select its time of day as well",
            share=share,
        )


def _gaps(days: Days) -> Iterator[Finding]:
    """Days without events, where gaps of that length are unusual."""
    if len(days.day) < 2:  # noqa: PLR2004 - a distance needs two days
        return
    distance, usual = np.diff(days.day), usual_distance(days.day)
    span = days.day[-1] - days.day[0] + 1
    expected = (distance - usual) * days.events.sum() / span
    silent = (distance > usual) & (expected >= EXPECTED_EVENTS)
    long = silent & (distance > LONG_GAP * usual)
    for severity, gaps in (("warning", long), ("note", silent & ~long)):
        if not gaps.any():
            continue
        longest = int(np.argmax(np.where(gaps, distance, 0)))
        empty = int((distance[gaps] - 1).sum())
        yield Finding(
            severity="warning" if severity == "warning" else "note",
            check="gap",
            where="events.event_time",
            message=f"{empty:,} days within the history have no events, in {gaps.sum():,} gaps, the longest from "
            f"{iso_day(days.day[longest] + 1)} to {iso_day(days.day[longest + 1] - 1)}",
            fix="load the missing events, unless the shop was closed: to the models it looks as if no customer came",
            share=empty / float(span),
        )


def _fall(days: Days) -> Iterator[Finding]:
    """Compare the last window with those before it, leaving out the last day, which may be incomplete."""
    daily = np.zeros(days.day[-1] - days.day[0] + 1, dtype=np.int64)
    daily[days.day - days.day[0]] = days.events
    so_far = np.concatenate([[0], np.cumsum(daily[:-1])])
    min_windows, max_windows = FALL_REFERENCES
    for length in FALL_WINDOWS_DAYS:
        step = max(7, length)  # the same days of the week
        ends = len(so_far) - 1 - step * np.arange(max_windows + 1)
        ends = ends[ends >= length]
        if len(ends) <= min_windows:
            continue
        window, *before = (so_far[ends] - so_far[ends - length]).tolist()
        usual = float(np.median(before))
        if usual >= FALL_EVENTS and window < FALL * usual and window < min(before):
            yield Finding(
                severity="warning",
                check="falling volume",
                where="events.event_time",
                message=f"the last {length} whole days have {window / usual:.0%} of the usual number of events",
                fix="load these days again, or leave them out in SQL: an unfinished load looks like customers leaving",
                share=window / usual,
            )
            return


def usual_distance(day: npt.NDArray[np.int64]) -> float:
    """The 95th percentile of the distances in days between one day with events and the next."""
    return float(np.quantile(np.diff(day), 0.95, method="inverted_cdf"))


def iso_day(day: float) -> str:
    """A day (in days since 1970) as an ISO date."""
    return utc_date(float(day) * DAY_S)
