"""The life of a connection without a socket: keepalive, age, stalled writes, and a graceful end in the right order."""

from __future__ import annotations

import pytest

from service.transport.lean.lifetime import FIRST_CALL_S, HANDSHAKE_S, LINGER_S, PONG_S, Action, Lifetime, Limits, Phase

LIMITS = Limits(max_age_s=1000.0, keepalive_s=60.0, keepalive_timeout_s=20.0, write_stall_timeout_s=30.0)
LATER = 0.1


class Peer:
    """A connection at time 0, whose peer has greeted and sent a request; times are seconds since then."""

    def __init__(self, limits: Limits = LIMITS, *, greeted: bool = True, called: bool = True) -> None:
        self.lifetime = Lifetime(limits, 0.0)
        if greeted:
            self.lifetime.greeted()
        if called:
            self.lifetime.called()
        self.pongs = self.open_streams = self.unsent = 0
        self.write_blocked = False

    def tick(self, now: float) -> Action:
        return self.lifetime.tick(
            now,
            pongs=self.pongs,
            open_streams=self.open_streams,
            unsent=self.unsent,
            write_blocked=self.write_blocked,
        )

    @property
    def phase(self) -> Phase:
        return self.lifetime.phase


def test_a_peer_that_does_not_greet_is_dropped() -> None:
    peer = Peer(greeted=False)
    assert peer.tick(HANDSHAKE_S) is Action.NOTHING
    assert peer.tick(HANDSHAKE_S + LATER) is Action.ABORT


def test_a_peer_that_sends_no_request_is_asked_to_leave() -> None:
    peer = Peer(called=False)
    assert peer.tick(FIRST_CALL_S) is Action.NOTHING
    assert peer.tick(FIRST_CALL_S + LATER) is Action.LEAVE


def test_a_silent_peer_is_pinged_once_and_dropped_if_it_does_not_answer() -> None:
    peer = Peer()
    assert peer.tick(60.0) is Action.NOTHING
    assert peer.tick(60.1) is Action.PING
    assert peer.tick(80.1) is Action.NOTHING
    assert peer.tick(80.2) is Action.ABORT


def test_a_peer_that_answers_the_ping_stays_and_is_pinged_again() -> None:
    peer = Peer()
    assert peer.tick(60.1) is Action.PING
    peer.lifetime.heard(61.0)
    assert peer.tick(120.9) is Action.NOTHING
    assert peer.tick(121.1) is Action.PING


def test_an_old_connection_leaves() -> None:
    peer = Peer()
    peer.lifetime.heard(1000.0)
    assert peer.tick(1000.0) is Action.NOTHING
    assert peer.tick(1000.1) is Action.LEAVE


def test_the_end_is_goaway_then_the_final_goaway_then_half_close_then_close() -> None:
    peer = Peer()
    assert peer.lifetime.leave(1.0, peer.pongs)
    assert not peer.lifetime.leave(1.0, peer.pongs)  # it has begun
    assert peer.tick(1.1) is Action.NOTHING
    peer.pongs, peer.open_streams = 1, 2
    assert peer.tick(1.2) is Action.DRAIN
    assert peer.tick(1.2) is Action.NOTHING
    peer.open_streams = 0
    assert peer.tick(1.3) is Action.HALF_CLOSE
    peer.lifetime.half_close(1.3)
    assert peer.phase is Phase.HALF_CLOSED
    assert peer.tick(1.3 + LINGER_S) is Action.NOTHING
    assert peer.tick(1.3 + LINGER_S + LATER) is Action.CLOSE


def test_a_peer_that_never_answers_the_ping_behind_goaway_is_taken_to_have_read_it() -> None:
    peer = Peer()
    peer.lifetime.leave(0.0, peer.pongs)
    assert peer.tick(PONG_S) is Action.NOTHING
    assert peer.tick(PONG_S + LATER) is Action.DRAIN
    assert peer.tick(PONG_S + LATER) is Action.HALF_CLOSE


def test_the_answer_to_an_earlier_keepalive_ping_is_no_answer_to_goaway() -> None:
    peer = Peer()
    assert peer.tick(60.1) is Action.PING
    peer.lifetime.leave(60.2, peer.pongs)
    peer.pongs = 1
    assert peer.tick(60.3) is Action.NOTHING
    peer.pongs = 2
    assert peer.tick(60.4) is Action.DRAIN


def test_a_stream_that_goes_on_while_draining_is_kept_alive() -> None:
    peer = Peer()
    peer.lifetime.leave(0.0, peer.pongs)
    peer.pongs, peer.open_streams = 1, 1
    assert peer.tick(0.1) is Action.DRAIN
    assert peer.tick(60.1) is Action.PING
    assert peer.tick(80.2) is Action.ABORT


def test_replies_that_are_taken_too_slowly_while_draining_end_the_connection() -> None:
    peer = Peer()
    peer.lifetime.leave(0.0, peer.pongs)
    peer.pongs, peer.unsent = 1, 1000
    assert peer.tick(0.1) is Action.DRAIN
    for second in range(1, 30):
        peer.unsent -= 1
        assert peer.tick(float(second)) is Action.NOTHING
    assert peer.tick(30.2) is Action.ABORT


@pytest.mark.parametrize("blocked", [True, False])
def test_a_peer_that_takes_nothing_of_what_waits_is_dropped(blocked: bool) -> None:
    peer = Peer()
    peer.lifetime.heard(100.0)
    assert peer.tick(100.0) is Action.NOTHING
    if blocked:
        peer.write_blocked = True
        peer.lifetime.write_blocked(100.0)
    else:
        peer.unsent = 500
        assert peer.tick(100.0) is Action.NOTHING
    assert peer.tick(130.0) is Action.NOTHING
    assert peer.tick(130.1) is Action.ABORT


def test_any_progress_gives_the_peer_time_again() -> None:
    peer = Peer()
    for now in (0.0, 25.0, 50.0):
        peer.lifetime.heard(now)
        peer.unsent += 100
        assert peer.tick(now) is Action.NOTHING
    assert peer.tick(80.1) is Action.ABORT


def test_a_closing_socket_that_is_not_read_is_dropped() -> None:
    lifetime = Peer().lifetime
    assert lifetime.tick_closing(5.0) is Action.NOTHING
    assert lifetime.tick_closing(35.0) is Action.NOTHING
    assert lifetime.tick_closing(35.1) is Action.ABORT
