"""How many connections may be open, in total and for one address, and which one is closed when there are too many.

Anybody may open connections, so at a limit the newest one is not refused as long as others have no call under way:
those that never had a call are closed first (the oldest of them), then those that are not of known callers, then those
that have been idle for the longest time. gRPC clients open another connection with their next call.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Collection
from typing import Final, Protocol

ADDRESS_SHARE: Final = 0.8
"""Share of all connections that one address may have. A proxy has one address for all its clients."""
NETWORK_BITS: Final = 64
"""Bits of an IPv6 address that count: the owner of the network chooses the others."""


class Limited(Protocol):
    """A connection as the limit sees it."""

    @property
    def address(self) -> str:
        """What :func:`address_of` says of its peer."""

    @property
    def is_known(self) -> bool:
        """Whether a call of a known caller came over it."""

    @property
    def idle_since(self) -> float | None:
        """When its last call ended, in monotonic seconds; None while a call is under way."""

    def give_way(self) -> None:
        """Close at once."""


class ConnectionLimit:
    """The open connections of a server."""

    def __init__(self, max_connections: int) -> None:
        self._max: Final = max_connections
        self._max_of_address: Final = max(1, int(max_connections * ADDRESS_SHARE))
        self._silent: Final[dict[Limited, None]] = {}
        """Connections without a call so far, oldest first."""
        self._of_address: Final[defaultdict[str, dict[Limited, None]]] = defaultdict(dict)
        self._open: Final[set[Limited]] = set()

    def admit(self, connection: Limited) -> bool:
        """Take a new connection in, if need be in place of another one; False if there is no room."""
        others = self._of_address.get(connection.address, {})
        if len(others) >= self._max_of_address and not self._make_room(others):
            return False
        if len(self._open) >= self._max and not self._make_room(self._open):
            return False
        self._open.add(connection)
        self._silent[connection] = None
        self._of_address[connection.address][connection] = None
        return True

    def called(self, connection: Limited) -> None:
        """Note that the first request has come over a connection."""
        self._silent.pop(connection, None)

    def lost(self, connection: Limited) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._silent.pop(connection, None)
        if (others := self._of_address.get(connection.address)) is not None:
            others.pop(connection, None)
            if not others:
                del self._of_address[connection.address]

    def _make_room(self, connections: Collection[Limited]) -> bool:
        """Close one of the connections; False if all of them have calls under way."""
        if connections is self._open:
            silent = next(iter(self._silent), None)
        else:
            silent = next((connection for connection in connections if connection in self._silent), None)
        victim = silent or min(
            (connection for connection in connections if connection.idle_since is not None),
            key=lambda connection: (connection.is_known, connection.idle_since),
            default=None,
        )
        if victim is None:
            return False
        self.lost(victim)
        victim.give_way()
        return True


def address_of(peer: object) -> str:
    """The address of a peer, as connections are counted: that of IPv4, or the network of IPv6; empty if unknown.

    Args:
        peer: What a socket says of its peer: a tuple that begins with the address, or something else.
    """
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))
