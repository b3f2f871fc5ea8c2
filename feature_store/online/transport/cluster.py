"""A Redis cluster, on the running event loop: each key is asked of the server that has its slot.

One exchange per server for all that is asked together; an MGET is taken apart, because a server answers for keys of one
slot at a time only. While a slot has no server the whole cluster counts as away, as it does by its own default
(``cluster-require-full-coverage``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.transport.address import Address, Host
from feature_store.online.transport.connections import SLOTS, Command, Link, RedisError, Server, refusal, slot_of

MGET: Final = b"MGET"
ASKING: Final = (b"ASKING",)
WHO_HAS: Final = (b"CLUSTER", b"SLOTS")
FIRST_KEY: Final = {b"EVAL": 3, b"EVALSHA": 3}
"""Elsewhere it is the word after the command."""
ROUNDS: Final = 4
"""A slot moves from one server to another, and perhaps again."""


@dataclass(slots=True, eq=False)
class _Piece:
    """What is asked of one server: a command, or the keys of an MGET that share a slot.

    at: position of the command that it is of; places: positions of its keys there, none where it is the whole command;
    asking: the server has the slot only just.
    """

    host: Host
    command: Command
    at: int
    places: Sequence[int] = ()
    asking: bool = False


class Cluster:
    """The servers of a cluster, who has which slot, and questions to them."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._links: dict[Host, Link] = {}
        self._owners: list[Host] = []
        """By slot; empty while that is not known."""
        self._link(address.hosts[0])  # refuses unknown options only now

    async def ask(self, commands: Sequence[Command], budget_s: float, *, once: bool = False) -> list[Any]:
        """The replies to commands, as :meth:`Link.ask` has them, each from the servers that have its keys."""
        until = asyncio.get_running_loop().time() + budget_s
        if not self._owners:
            await self._learn(budget_s)
        replies: list[Any] = [[None] * (len(command) - 1) if command[0] == MGET else None for command in commands]
        todo = [piece for at, command in enumerate(commands) for piece in self._pieces(at, command)]
        for _ in range(ROUNDS):
            left = max(until - asyncio.get_running_loop().time(), 0.0)
            todo, moved = await self._round(todo, replies, left, once=once)
            if not todo:
                return replies
            if moved:
                await self._learn(left)
                todo = [self._at_owner(piece) for piece in todo]
        raise StoreAwayError("MOVED")

    async def probe(self, budget_s: float) -> None:
        """Return if every slot has a server, and each answers; StoreAwayError where not."""
        await self._learn(budget_s)
        await asyncio.gather(*(self._link(host).probe(budget_s) for host in set(self._owners)))

    async def follow(self) -> None:
        """Whoever is asked for a slot that it has not any more says so."""

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """What an error that a server answered with means."""
        return refusal(reply, master=True)

    async def drop(self) -> None:
        """Close the connections that nobody uses just now, and forget who has which slot."""
        self._owners = []
        for link in self._links.values():
            await link.drop()

    async def close(self) -> None:
        """Close the connections."""
        await self.drop()

    def _link(self, host: Host) -> Link:
        if host not in self._links:
            self._links[host] = Link(Server(self._address.at(*host), self._timeout_s))
        return self._links[host]

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
        self, todo: Sequence[_Piece], replies: list[Any], budget_s: float, *, once: bool
    ) -> tuple[list[_Piece], bool]:
        """Ask for all pieces and fill in what comes; returns what is to be asked elsewhere, and whether slots moved."""
        of_host: dict[Host, list[_Piece]] = {}
        for piece in todo:
            of_host.setdefault(piece.host, []).append(piece)
        found = await asyncio.gather(
            *(self._ask_one(host, pieces, budget_s, once=once) for host, pieces in of_host.items())
        )
        again, moved = [], False
        for pieces, answers in zip(of_host.values(), found, strict=True):
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

    async def _ask_one(self, host: Host, pieces: Sequence[_Piece], budget_s: float, *, once: bool) -> list[Any]:
        commands: list[Command] = []
        for piece in pieces:
            commands += (ASKING, piece.command) if piece.asking else (piece.command,)
        answers = await self._link(host).ask(commands, budget_s, once=once)
        return [answer for command, answer in zip(commands, answers, strict=True) if command is not ASKING]

    async def _learn(self, budget_s: float) -> None:
        """Ask who has which slot: one after the other, for some may be gone."""
        hosts = list(dict.fromkeys((*self._owners, *self._links, *self._address.hosts)))
        error = StoreAwayError("no server of the cluster answers")
        for host in hosts:
            try:
                (reply,) = await self._link(host).ask([WHO_HAS], budget_s / len(hosts))
            except StoreAwayError as silent:
                error = silent
                continue
            if isinstance(reply, RedisError):
                error = StoreAwayError("it is no cluster")
                continue
            if len(owners := _owners(reply, host)) == SLOTS:
                self._owners = [owners[slot] for slot in range(SLOTS)]
                return
            error = StoreAwayError("slots without a server")
        raise error


def _owners(reply: list[Any], asked: Host) -> dict[int, Host]:
    """Who has which slot, from what CLUSTER SLOTS says: a server that does not know its own address leaves it out."""
    found = {}
    for first, last, (host, port, *_), *_ in reply:
        owner = (host.decode() if host else "") or asked[0], int(port)
        found.update(dict.fromkeys(range(first, last + 1), owner))
    return found


def _fill(replies: list[Any], piece: _Piece, answer: Any) -> None:
    if isinstance(answer, RedisError) or not piece.places:
        replies[piece.at] = answer
    elif not isinstance(replies[piece.at], RedisError):
        for place, value in zip(piece.places, answer, strict=True):
            replies[piece.at][place] = value
