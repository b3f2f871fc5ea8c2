"""How long a connection lives: handshake, keepalive, age, stalled writes, and its graceful end. Times in, actions out.

::

    OPEN ──► GOAWAY_SENT ──► DRAINING ──► HALF_CLOSED ──► the transport is closed
      │           │             └ all calls are answered, and their replies taken by the peer
      │           └ the peer has answered the ping behind GOAWAY, so it opens no more streams here (or PONG_S are over)
      └ too old; or has carried many requests; or the server stops

Like all of the lean transport's protocol code this does no I/O: :meth:`Lifetime.tick` says what to do, and the
connection does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

HANDSHAKE_S: Final = 10.0
"""Seconds within which a connection must have sent the preface of HTTP/2."""
FIRST_CALL_S: Final = 10.0
"""Seconds within which a connection must have had a request; clients open another one with their next call."""
PONG_S: Final = 5.0
"""Seconds that a peer has to answer the ping behind GOAWAY; after that it is taken to have read GOAWAY."""
LINGER_S: Final = 1.0
"""Seconds that a peer has to close after we have; closing the socket before it is read may lose what was sent."""


class Phase(Enum):
    """How far a connection is on its way to its end."""

    OPEN = auto()
    GOAWAY_SENT = auto()
    """The peer has been asked to open no more streams, and may not have read that yet."""
    DRAINING = auto()
    """The peer opens no more streams; those that are open are finished."""
    HALF_CLOSED = auto()
    """All has been written; what the peer still sends is read and dropped until it closes."""


class Action(Enum):
    """What the connection has to do now."""

    NOTHING = auto()
    PING = auto()
    """Send a ping."""
    LEAVE = auto()
    """Send GOAWAY and a ping, by :meth:`Lifetime.leave`."""
    DRAIN = auto()
    """Send the final GOAWAY and end the streams that would otherwise never end."""
    HALF_CLOSE = auto()
    """Write what is left and close the sending side."""
    CLOSE = auto()
    """Close the socket after what has been written."""
    ABORT = auto()
    """Close the socket at once."""


@dataclass(frozen=True)
class Limits:
    """The times that a connection is held to, in seconds."""

    max_age_s: float
    keepalive_s: float
    keepalive_timeout_s: float
    write_stall_timeout_s: float


class Lifetime:
    """The state machine of one connection's life."""

    def __init__(self, limits: Limits, now: float) -> None:
        """Begin with a connection that was accepted ``now``, by the monotonic clock in seconds."""
        self._limits: Final = limits
        self._accepted_at: Final = now
        self.phase = Phase.OPEN
        self._phase_ends_at = math.inf
        self._has_greeted = self._has_called = False
        self._heard_at = now
        self._progress_at = now
        self._unsent = 0
        self._pinged_at: float | None = None
        self._pongs_awaited = 0
        self._closing_since: float | None = None

    def heard(self, now: float) -> None:
        """The peer has sent something."""
        self._heard_at = now

    def greeted(self) -> None:
        """The peer has sent the preface of HTTP/2."""
        self._has_greeted = True

    def called(self) -> None:
        """The peer has sent a request."""
        self._has_called = True

    def write_blocked(self, now: float) -> None:
        """The socket takes no more: the peer has to read something within the limit."""
        self._progress_at = now

    def leave(self, now: float, pongs: int) -> bool:
        """Begin the graceful end, unless it has begun.

        Args:
            now: The time.
            pongs: Pings answered so far.

        Returns:
            Whether to send GOAWAY, followed by a ping.
        """
        if self.phase is not Phase.OPEN:
            return False
        self.phase, self._phase_ends_at = Phase.GOAWAY_SENT, now + PONG_S
        self._pongs_awaited = pongs + (self._pinged_at is not None) + 1
        return True

    def half_close(self, now: float) -> None:
        """The sending side has been closed."""
        self.phase, self._phase_ends_at = Phase.HALF_CLOSED, now + LINGER_S

    def tick_closing(self, now: float) -> Action:
        """What to do while the socket closes: bytes that wait in it may never find a reader."""
        if self._closing_since is None:
            self._closing_since = now
        stalled = now > self._closing_since + self._limits.write_stall_timeout_s
        return Action.ABORT if stalled else Action.NOTHING

    def tick(self, now: float, *, pongs: int, open_streams: int, unsent: int, write_blocked: bool) -> Action:
        """Say what to do now. Call it again after DRAIN, since there may be more to do at once.

        Args:
            now: The time, by the monotonic clock in seconds.
            pongs: Pings answered so far.
            open_streams: Streams that have no complete reply yet.
            unsent: Bytes of replies that wait because the peer's flow-control window is full.
            write_blocked: Whether the socket takes no more bytes.

        Returns:
            The action to take.
        """
        greeting_late = not self._has_greeted and now > self._accepted_at + HANDSHAKE_S
        if self._stalled(now, unsent, write_blocked=write_blocked) or greeting_late:
            return Action.ABORT
        match self.phase:
            case Phase.OPEN:
                max_age_s = self._limits.max_age_s if self._has_called else min(self._limits.max_age_s, FIRST_CALL_S)
                too_old = now > self._accepted_at + max_age_s
                return Action.LEAVE if too_old else self._keepalive(now)
            case Phase.GOAWAY_SENT:
                return self._tick_goaway_sent(now, pongs)
            case Phase.DRAINING:
                return self._tick_draining(now, open_streams, unsent)
            case Phase.HALF_CLOSED:
                return Action.CLOSE if now > self._phase_ends_at else Action.NOTHING

    def _tick_goaway_sent(self, now: float, pongs: int) -> Action:
        if pongs < self._pongs_awaited and now <= self._phase_ends_at:
            return Action.NOTHING
        self.phase, self._phase_ends_at = Phase.DRAINING, now + self._limits.write_stall_timeout_s
        return Action.DRAIN

    def _tick_draining(self, now: float, open_streams: int, unsent: int) -> Action:
        if open_streams:
            return self._keepalive(now)  # a stream may last long, and its peer may have vanished
        if not unsent:
            return Action.HALF_CLOSE
        return Action.ABORT if now > self._phase_ends_at else Action.NOTHING

    def _stalled(self, now: float, unsent: int, *, write_blocked: bool) -> bool:
        """Whether the peer has taken nothing of what waits for it, for too long."""
        if unsent != self._unsent or not (unsent or write_blocked):
            self._unsent, self._progress_at = unsent, now
        return now > self._progress_at + self._limits.write_stall_timeout_s

    def _keepalive(self, now: float) -> Action:
        if self._pinged_at is not None and self._heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is not None:
            expired = now > self._pinged_at + self._limits.keepalive_timeout_s
            return Action.ABORT if expired else Action.NOTHING
        if now > self._heard_at + self._limits.keepalive_s:
            self._pinged_at = now
            return Action.PING
        return Action.NOTHING
