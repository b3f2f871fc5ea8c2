"""Epochs of the log: which history a position belongs to.

A position alone does not identify a commit. A Redis that loses data (a failover to a replica that lagged, a restored
backup, a machine that failed within the last second) assigns the same positions again to other commits. Each run of a
redis-server therefore begins a new epoch with its first commit: a random name, and the position at which it begins.
Two logs with the same epochs have the same commits; otherwise they agree up to the first difference, as with the leader
epochs of Apache Kafka (KIP-101).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Epoch(NamedTuple):
    """An epoch of the log.

    Attributes:
        first: Position of its first commit.
        name: Its name, which no other epoch has.
    """

    first: int
    name: str


def parse_epochs(value: bytes | None) -> list[Epoch]:
    """Epochs as they are stored in Redis, oldest first: ``position name,position name,…``."""
    pairs = (item.split(" ") for item in value.decode().split(",")) if value else ()
    return [Epoch(int(first), name) for first, name in pairs]


def common_position(first: Sequence[Epoch], first_end: int, second: Sequence[Epoch], second_end: int) -> int:
    """The last position at which two logs have the same commit, and all before it.

    Args:
        first: Epochs of one log, oldest first.
        first_end: Its newest position.
        second: Epochs of the other log.
        second_end: Its newest position.

    Returns:
        The position; 0 if the logs have nothing in common.
    """
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    if not same:
        return 0
    ends = [
        epochs[same].first - 1 if same < len(epochs) else end
        for epochs, end in ((first, first_end), (second, second_end))
    ]
    return min(ends)
