"""A Redis cluster on the running event loop: each command is sent to the server that has the slot of its key.

Commands that are sent together take one exchange per server. An MGET is split, because a server accepts only keys of
the same slot. While a slot has no server the whole cluster counts as unavailable, which is also the cluster's own
default (``cluster-require-full-coverage``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.transport.address import Address, Host
from feature_store.online.transport.connection_pool import ConnectionPool, pool_of_server
from feature_store.online.transport.connections import SLOTS, Command, RedisError, refusal, slot_of

MGET: Final = b"MGET"
ASKING: Final = (b"ASKING",)
CLUSTER_SLOTS: Final = (b"CLUSTER", b"SLOTS")
FIRST_KEY: Final = {b"EVAL": 3, b"EVALSHA": 3}
"""Index of the key in a command; 1 for other commands."""
MAX_ROUNDS: Final = 4
"""Attempts for a slot that has moved to another server, and perhaps again."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A command for one server: a whole one, or an MGET of the keys that share a slot.

    Attributes:
        host: The server.
        command: The command.
        at: Index of the original command.
        places: Indexes of the keys in the original MGET; empty for a whole command.
        asking: The server is only importing the slot, so that ASKING has to precede the command.
    """

    host: Host
    command: Command
    at: int
    places: Sequence[int] = ()
    asking: bool = False


class Cluster:
    """The servers of a cluster and their slots."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._pools: dict[Host, ConnectionPool] = {}
        self._owners: list[Host] = []
        """Server by slot; empty while it is unknown."""
        self._pool(address.hosts[0])  # unknown options are rejected only here

    async def ask(
        self,
        commands: Sequence[Command],
        budget_s: float,
        *,
        once: bool = False,
        with_run: bool = False,
        urgent: bool = False,
    ) -> list[Any]:
        """The replies to commands, as :meth:`ConnectionPool.ask` returns them; ``with_run`` has no meaning here."""
        del with_run
        until = asyncio.get_running_loop().time() + budget_s
        if not self._owners:
            await self._read_slots(budget_s)
        replies: list[Any] = [[None] * (len(command) - 1) if command[0] == MGET else None for command in commands]
        todo = [piece for at, command in enumerate(commands) for piece in self._pieces(at, command)]
        for _ in range(MAX_ROUNDS):
            left = max(until - asyncio.get_running_loop().time(), 0.0)
            todo, moved = await self._round(todo, replies, left, once=once, urgent=urgent)
            if not todo:
                return replies
            if moved:
                await self._read_slots(left)
                todo = [self._at_owner(piece) for piece in todo]
        raise StoreAwayError("MOVED")

    async def probe(self, budget_s: float) -> None:
        """Return if every slot has a server and all servers answer; StoreAwayError otherwise."""
        await self._read_slots(budget_s)
        await asyncio.gather(*(self._pool(host).probe(budget_s) for host in set(self._owners)))

    async def check(self, budget_s: float) -> None:
        """Return if all servers can be used still; StoreAwayError if one cannot."""
        if not self._owners:
            await self._read_slots(budget_s)
        await asyncio.gather(*(self._pool(host).check(budget_s) for host in set(self._owners)))

    async def follow(self) -> None:
        """Nothing to do: a server that no longer has a slot says so in its reply."""

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """The exception for an error reply."""
        return refusal(reply, master=True)

    async def drop(self) -> None:
        """Close idle connections, and forget the slots."""
        self._owners = []
        for link in self._pools.values():
            await link.drop()

    async def close(self) -> None:
        """Close the connections."""
        await self.drop()

    def _pool(self, host: Host) -> ConnectionPool:
        if host not in self._pools:
            self._pools[host] = pool_of_server(self._address.at(*host), self._timeout_s)
        return self._pools[host]

    def _pieces(self, at: int, command: Command) -> Iterator[_Piece]:
        if command[0] != MGET:
            key = FIRST_KEY.get(command[0], 1)
            owner = self._owners[slot_of(command[key])] if len(command) > key else self._owners[0]
            yield _Piece(owner, command, at)
            return
        slots: dict[int, list[int]] = {}
        for place, key_of in enumerate(command[1:]):
            slots.setdefault(slot_of(key_of), []).append(place)
        for slot, places in slots.items():
            yield _Piece(self._owners[slot], (MGET, *(command[1 + place] for place in places)), at, places)

    def _at_owner(self, piece: _Piece) -> _Piece:
        if not piece.asking:
            piece.host = self._owners[slot_of(piece.command[FIRST_KEY.get(piece.command[0], 1)])]
        return piece

    async def _round(
        self, todo: Sequence[_Piece], replies: list[Any], budget_s: float, *, once: bool, urgent: bool
    ) -> tuple[list[_Piece], bool]:
        """Send all pieces and fill in the replies.

        Returns:
            The pieces to send again, to other servers, and whether slots have moved.
        """
        of_host: dict[Host, list[_Piece]] = {}
        for piece in todo:
            of_host.setdefault(piece.host, []).append(piece)
        results = await asyncio.gather(
            *(self._ask_one(host, pieces, budget_s, once=once, urgent=urgent) for host, pieces in of_host.items())
        )
        again, moved = [], False
        for pieces, answers in zip(of_host.values(), results, strict=True):
            for piece, answer in zip(pieces, answers, strict=True):
                word, _, where = str(answer).partition(" ") if isinstance(answer, RedisError) else ("", "", "")
                if word not in ("MOVED", "ASK"):
                    _fill(replies, piece, answer)
                    continue
                moved |= word == "MOVED"
                host, _, port = where.rpartition(" ")[2].rpartition(":")
                piece.host, piece.asking = (host or piece.host[0], int(port)), word == "ASK"
                again.append(piece)
        return again, moved

    async def _ask_one(
        self, host: Host, pieces: Sequence[_Piece], budget_s: float, *, once: bool, urgent: bool
    ) -> list[Any]:
        commands: list[Command] = []
        for piece in pieces:
            commands += (ASKING, piece.command) if piece.asking else (piece.command,)
        answers = await self._pool(host).ask(commands, budget_s, once=once, urgent=urgent)
        return [answer for command, answer in zip(commands, answers, strict=True) if command is not ASKING]

    async def _read_slots(self, budget_s: float) -> None:
        """Read the slots from a server, trying one after the other because some may be gone."""
        hosts = list(dict.fromkeys((*self._owners, *self._pools, *self._address.hosts)))
        error = StoreAwayError("no server of the cluster answers")
        for host in hosts:
            try:
                (reply,) = await self._pool(host).ask([CLUSTER_SLOTS], budget_s / len(hosts))
            except StoreAwayError as silent:
                error = silent
                continue
            if isinstance(reply, RedisError):
                error = StoreAwayError("it is not a cluster")
                continue
            if len(owners := _owners(reply, host)) == SLOTS:
                self._owners = [owners[slot] for slot in range(SLOTS)]
                return
            error = StoreAwayError("a slot has no server")
        raise error


def _owners(reply: list[Any], asked: Host) -> dict[int, Host]:
    """Server by slot, from a reply to CLUSTER SLOTS; a server that does not know its own address leaves it out."""
    owners = {}
    for first, last, (host, port, *_), *_ in reply:
        owner = (host.decode() if host else "") or asked[0], int(port)
        owners.update(dict.fromkeys(range(first, last + 1), owner))
    return owners


def _fill(replies: list[Any], piece: _Piece, answer: Any) -> None:
    if isinstance(answer, RedisError) or not piece.places:
        replies[piece.at] = answer
    elif not isinstance(replies[piece.at], RedisError):
        for place, value in zip(piece.places, answer, strict=True):
            replies[piece.at][place] = value
