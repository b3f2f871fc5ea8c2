"""What a redis-server says about itself, and whether it can keep customers' data.

It is asked whenever a connection is opened, so after a failover too, and again whenever health is checked: policies
and permissions can change while connections are open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_LINE: Final = re.compile(rb"^(run_id|redis_version|maxmemory|maxmemory_policy|aof_enabled):([^\r\n]*)", re.MULTILINE)
_REFUSED: Final = re.compile(
    r"unknown command [`'\"]?(?P<unknown>[\w|]+)|permissions? to (?:run|execute) the '(?P<denied>[\w|]+)'"
)
NO_EVICTION: Final = "noeviction"
MIN_VERSION: Final = (6, 2)
"""The oldest supported version of Redis. Valkey reports the version of Redis that it is compatible with, 7.2."""

INFO: Final = (b"INFO",)
CHECK: Final[Sequence[tuple[bytes, ...]]] = (
    INFO,
    (b"MULTI",),
    (b"MGET", b"tm:check"),
    (b"EVALSHA", b"0" * 40, b"0"),
    (b"DISCARD",),
)
"""Commands whose replies show whether a server can be used. In a transaction that is discarded Redis says whether a
command is allowed, and executes nothing."""
NEEDED: Final = frozenset({"MGET", "EVALSHA"})


@dataclass(frozen=True)
class ServerFacts:
    """What a redis-server says about itself.

    Attributes:
        run: Its ``run_id``, which differs for each start of each server.
        version: Its version as it writes it; empty if it does not say.
        max_memory: Bytes that its data may take; 0 for no limit.
        eviction: The policy by which it evicts keys once the memory is full.
        append_only: Whether it writes an append-only file.
        refused: A command of NEEDED that it does not know or allow; empty if there is none.
    """

    run: bytes = b""
    version: str = ""
    max_memory: int = 0
    eviction: str = NO_EVICTION
    append_only: bool = False
    refused: str = ""

    @property
    def problem(self) -> str:
        """Why it cannot be used; empty if it can.

        A Redis that drops keys to make room loses consents and acknowledged events without a word. Policies that drop
        only keys with a lifetime drop what is kept of erased customers, who would then come back by a load.
        """
        if self.version and _numbers(self.version) < MIN_VERSION:
            oldest = ".".join(map(str, MIN_VERSION))
            return f"its version is {self.version}: use Redis {oldest} or newer, or Valkey"
        if self.max_memory and self.eviction != NO_EVICTION:
            return f"it evicts customers' data when its memory is full: set maxmemory-policy {NO_EVICTION}"
        return _not_allowed(self.refused) if self.refused else ""


def facts_of(replies: Sequence[Any]) -> ServerFacts:
    """The facts in the replies to CHECK, error replies included; the first reply must not be one."""
    info = replies[0].encode() if isinstance(replies[0], str) else replies[0]
    values = {match[1].decode(): match[2] for match in _LINE.finditer(info)}
    refused = {refused_command(reply) for reply in replies[1:] if isinstance(reply, Exception)} & NEEDED
    return _facts({name: value.decode() for name, value in values.items()}, min(refused, default=""))


def facts_of_info(info: Mapping[str, Any], refused: str = "") -> ServerFacts:
    """The facts in redis-py's reply to INFO."""
    return _facts({name: str(value) for name, value in info.items()}, refused)


def refused_command(reply: Exception) -> str:
    """The command that an error reply says is unknown or not allowed; empty if it says something else.

    The text of a reply is never shown as a whole, because it may repeat arguments, and customers' ids with them.
    """
    match = _REFUSED.search(str(reply))
    return (match["unknown"] or match["denied"]).upper() if match else ""


def refusal_text(reply: Exception) -> str:
    """What an error reply says, as far as it can be shown."""
    if command := refused_command(reply):
        return _not_allowed(command)
    return type(reply).__name__


def _not_allowed(command: str) -> str:
    return f"it does not allow {command}: permit it to the user, and do not rename it"


def _facts(values: Mapping[str, str], refused: str) -> ServerFacts:
    return ServerFacts(
        run=values.get("run_id", "").encode(),
        version=values.get("redis_version", ""),
        max_memory=int(values.get("maxmemory") or 0),
        eviction=values.get("maxmemory_policy", NO_EVICTION),
        append_only=values.get("aof_enabled") == "1",
        refused=refused,
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
