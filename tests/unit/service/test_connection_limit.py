"""Which connections stay when there are too many, and how peers are counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from service.transport.lean.connection_limit import ConnectionLimit, address_of


@dataclass(eq=False)
class FakeConnection:
    """A connection that is closed when it has to give way."""

    address: str = "10.0.0.1"
    is_known: bool = False
    idle_since: float | None = 0.0
    closed: bool = field(default=False)

    def give_way(self) -> None:
        self.closed = True


def connections(limit: ConnectionLimit, count: int, address: str = "10.0.0.1") -> list[FakeConnection]:
    result = [FakeConnection(address) for _ in range(count)]
    assert all(limit.admit(connection) for connection in result)
    return result


def closed(connections: list[FakeConnection]) -> list[int]:
    return [at for at, connection in enumerate(connections) if connection.closed]


def test_below_the_limits_nobody_gives_way() -> None:
    limit = ConnectionLimit(10)
    first, second = connections(limit, 8, "a"), connections(limit, 2, "b")
    assert closed(first) == closed(second) == []


def test_the_oldest_connection_without_a_call_gives_way_first() -> None:
    limit = ConnectionLimit(10)
    first, second = connections(limit, 6, "a"), connections(limit, 4, "b")
    for called in (*first[:2], second[0]):
        limit.called(called)
    connections(limit, 2, "c")
    assert (closed(first), closed(second)) == ([2, 3], [])


def test_then_strangers_and_then_those_that_are_idle_for_longest() -> None:
    limit = ConnectionLimit(4)
    first = [
        FakeConnection("a", is_known=True, idle_since=1.0),
        FakeConnection("b", is_known=True, idle_since=5.0),
        FakeConnection("c", idle_since=9.0),
        FakeConnection("d", idle_since=None),
    ]
    for connection in first:
        assert limit.admit(connection)
        limit.called(connection)
    order = []
    for at in range(3):
        newcomer = FakeConnection(f"n{at}", idle_since=None)
        assert limit.admit(newcomer)
        limit.called(newcomer)
        order += [number for number in closed(first) if number not in order]
    assert order == [2, 0, 1]
    assert not limit.admit(FakeConnection("n3")), "all have calls under way"
    limit.lost(first[3])
    assert limit.admit(FakeConnection("n4"))


def test_one_address_cannot_have_all_and_its_own_connections_give_way() -> None:
    limit = ConnectionLimit(10)
    others, greedy = connections(limit, 2, "a"), connections(limit, 20, "b")
    assert closed(others) == []
    assert closed(greedy) == list(range(12))
    for connection in greedy[12:]:
        limit.called(connection)
        connection.idle_since = None
    assert not limit.admit(FakeConnection("b"))
    assert closed(others) == []


def test_a_connection_that_has_gone_makes_room() -> None:
    limit = ConnectionLimit(5)
    first = connections(limit, 4)
    for connection in first:
        connection.idle_since = None
        limit.called(connection)
    assert not limit.admit(FakeConnection())
    limit.lost(first[0])
    limit.lost(first[0])
    assert limit.admit(FakeConnection())


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.7", 50000), "192.0.2.7"),
        (("2001:db8::1", 50000, 0, 0), "2001:db8::/64"),
        (("2001:db8::ffff:2", 50000, 0, 0), "2001:db8::/64"),
        (("::ffff:192.0.2.7", 50000, 0, 0), "192.0.2.7"),
        (("fe80::1%eth0", 50000, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
        (("nonsense", 1), ""),
    ],
)
def test_peers_are_counted_by_address_or_network(peer: object, address: str) -> None:
    assert address_of(peer) == address
