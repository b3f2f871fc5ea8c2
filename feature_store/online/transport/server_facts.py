"""What a redis-server says about itself when a connection is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_LINE: Final = re.compile(rb"^(run_id|redis_version|maxmemory|maxmemory_policy|aof_enabled):([^\r\n]*)", re.MULTILINE)
NO_EVICTION: Final = "noeviction"
EVICTS_ALL: Final = "allkeys"


@dataclass(frozen=True)
class ServerFacts:
    """What a redis-server says about itself.

    Attributes:
        run: Its ``run_id``, which differs for each start of each server.
        version: Its version as it writes it; empty if it does not say.
        max_memory: Bytes that its data may take; 0 for no limit.
        eviction: The policy by which it evicts keys once the memory is full.
        append_only: Whether it writes an append-only file.
    """

    run: bytes = b""
    version: str = ""
    max_memory: int = 0
    eviction: str = NO_EVICTION
    append_only: bool = False

    @property
    def problem(self) -> str:
        """Why it cannot keep customers' data; empty if it can.

        A Redis that drops keys to make room loses consents and acknowledged events without a word. Policies that drop
        only keys with a lifetime are no trouble: nothing of a customer has one.
        """
        if self.max_memory and self.eviction.startswith(EVICTS_ALL):
            return f"it evicts customers' data when its memory is full: set maxmemory-policy {NO_EVICTION}"
        return ""


def parse_facts(info: bytes) -> ServerFacts:
    """The facts in the reply to INFO."""
    values = {match[1].decode(): match[2] for match in _LINE.finditer(info)}
    return ServerFacts(
        run=values.get("run_id", b""),
        version=values.get("redis_version", b"").decode(),
        max_memory=int(values.get("maxmemory", b"0") or 0),
        eviction=values.get("maxmemory_policy", NO_EVICTION.encode()).decode(),
        append_only=values.get("aof_enabled", b"0") == b"1",
    )
