"""Commits: all changes to a customer go through one script, atomically, under optimistic locking.

Bytes 8 to 15 of every packed value hold the position of the commit that wrote it. A write names the position of the
value that it was computed from. If Redis holds another one, the whole group (one customer, or two that are merged) is
left unchanged, and the caller reads and computes again. So no update is lost however many processes write, and events
are folded in Python only. Active layouts (``feature_store.online.active_layouts``) are protected in the same way: a
commit names the version of the layouts that it was computed for, and nothing is written if it has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import islice
from typing import Final, NamedTuple

from feature_store.errors import ArchiveBehindError, LayoutsChangedError, NotInClusterError
from feature_store.online.keys import ARCHIVED, LAYOUTS_VERSION, LOG, LOG_EPOCHS, LOG_RUN
from feature_store.state.checksum import with_checksum

POSITION: Final = slice(8, 16)
"""The bytes of a packed value that hold the commit's position."""
ANY: Final = b"any"
"""Expected position of an unconditional write."""

SCRIPT: Final = b"""
local stored = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local position, max_waiting = tonumber(stored[1] or 0), tonumber(ARGV[1])
if max_waiting > 0 and position - tonumber(stored[2] or 0) >= max_waiting then
    return {-1}
end
if ARGV[2] ~= '' and (stored[3] or '') ~= ARGV[2] then
    return {-2}
end
if ARGV[3] == '1' then
    redis.call('PERSIST', KEYS[1])
end
position = position + 1
local number, run = string.format('%d', position), ARGV[#ARGV]
local stamp, result, logs, sets = struct.pack('<I8', position), {position}, {}, {KEYS[1], number}
if not stored[1] or not stored[5] or stored[4] ~= run then
    local now = redis.call('TIME')
    local epoch = number .. ' ' .. redis.sha1hex(run .. ' ' .. now[1] .. ' ' .. now[2])
    sets = {KEYS[1], number, KEYS[4], run, KEYS[5], (stored[5] and stored[5] .. ',' or '') .. epoch}
end
local key, arg = 6, 5
for group = 1, tonumber(ARGV[4]) do
    local writes, log = tonumber(ARGV[arg]), ARGV[arg + 1]
    arg = arg + 2
    local meant = true
    for write = 0, writes - 1 do
        local expected = ARGV[arg + 3 * write]
        if expected ~= 'any' and redis.call('GETRANGE', KEYS[key + write], 8, 15) ~= expected then
            meant = false
        end
    end
    if meant then
        for write = 0, writes - 1 do
            local head = ARGV[arg + 3 * write + 1]
            if head == '' then
                redis.call('UNLINK', KEYS[key + write])
            elseif head ~= 'keep' then
                sets[#sets + 1] = KEYS[key + write]
                sets[#sets + 1] = head .. stamp .. ARGV[arg + 3 * write + 2]
            end
        end
        if log ~= '' then
            logs[#logs + 1] = log
        end
    else
        result[#result + 1] = group - 1
    end
    key, arg = key + writes, arg + 3 * writes
end
sets[#sets + 1] = KEYS[1] .. ':' .. number
sets[#sets + 1] = '[' .. table.concat(logs, ',') .. ']'
redis.call('MSET', unpack(sets))
return result
"""
"""KEYS: log, archived, version of the layouts, newest run, epochs, then one key per write. ARGV: the maximum number of
commits waiting for the archive (0: no limit), the expected version of the layouts (empty: any), whether to commit even
if memory is full (1), the number of groups; per group the number of its writes and its log items; per write the
expected position, and the value before and after the position (both empty to delete the key, "keep" to leave it as it
is); last, the run of Redis. Returns the commit's position followed by the groups that were not written; only -1 if too
many commits wait for the archive, only -2 if the version differs. Every position gets an entry, if only an empty one,
so that a missing entry is noticed. Lua can pass about 8,000 arguments to a command, which is more than a thousand
customers.

One command sets all values. Each command that a script calls costs a microsecond, and several write commands are a
transaction in the append-only file. If a write to that file is torn within a transaction, as on a full disk, Redis
truncates it after the last whole command, not before the transaction, and at the next start but one its commands become
part of the transaction that follows. A counter that went up in this way lost commits. Deletions still are commands of
their own; they come first, and only a call that was not acknowledged can be torn.

When memory is full, Redis refuses a script at its first write, unless that one takes no memory; then it lets the script
finish (its documentation: "Execution under low memory conditions"). PERSIST is such a write. It changes nothing here,
so it is not in the append-only file."""
SCRIPT_HASH: Final = sha1(SCRIPT).hexdigest().encode()  # noqa: S324  # how Redis names scripts

WRITE_SCRIPT: Final = b"""
if ARGV[1] ~= 'any' and redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    redis.call('UNLINK', KEYS[1])
elseif ARGV[2] ~= 'keep' then
    if ARGV[4] == '1' then
        redis.call('PERSIST', KEYS[1])
    end
    local now = redis.call('TIME')
    redis.call('SET', KEYS[1], ARGV[2] .. struct.pack('<I8', now[1] * 1000000 + now[2]) .. ARGV[3])
end
return 1
"""
"""The same for a single write in a cluster, whose servers have no log in common. The time takes the place of the
position: it differs with each write and is larger than any position of a log. The last argument says whether to write
even if memory is full."""


@dataclass(slots=True, eq=False)
class Write:
    """A new value for a key, written only if the key still holds the value it was computed from.

    Attributes:
        old: Packed value it was computed from; None if there was none.
        new: New packed value; None to delete the key.
        unconditional: Write whatever the key holds.
        check_only: Leave the key as it is; the group is not written if it changed.
    """

    key: bytes
    old: bytes | None
    new: bytes | None
    unconditional: bool = False
    check_only: bool = False

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes]:
        """Arguments of the script."""
        expected = ANY if self.unconditional else b"" if self.old is None else self.old[POSITION]
        if self.check_only:
            return expected, b"keep", b""
        if self.new is None:
            return expected, b"", b""
        new = with_checksum(self.key, self.new)
        return expected, new[:8], new[16:]


@dataclass(slots=True, eq=False)
class Group:
    """Writes that are done together or not at all, and the log items that go with them."""

    writes: list[Write] = field(default_factory=list)
    log: Sequence[str] = ()


class CommitResult(NamedTuple):
    """What a commit did.

    Attributes:
        position: Its position in the log.
        conflicts: Indexes of the groups that were not written, because another commit changed a value first.
    """

    position: int
    conflicts: list[int]


def commit_result(reply: list[int]) -> CommitResult:
    """What the script's reply means; ArchiveBehindError or LayoutsChangedError if it refused the commit."""
    if reply[0] == -1:
        raise ArchiveBehindError
    if reply[0] < 0:
        raise LayoutsChangedError
    return CommitResult(reply[0], reply[1:])


def keys_and_arguments(
    groups: Sequence[Group], max_waiting: int = 0, layouts_version: bytes = b"", *, when_full: bool = False
) -> tuple[list[bytes], list[bytes]]:
    """KEYS and ARGV of the script, without the run of Redis, which is that of the connection."""
    keys = [LOG, ARCHIVED, LAYOUTS_VERSION, LOG_RUN, LOG_EPOCHS]
    arguments = [b"%d" % max_waiting, layouts_version, b"%d" % when_full, b"%d" % len(groups)]
    for group in groups:
        arguments += (b"%d" % len(group.writes), ",".join(group.log).encode())
        for write in group.writes:
            keys.append(write.key)
            arguments += write.arguments
    return keys, arguments


def cluster_commands(groups: Sequence[Group], *, when_full: bool = False) -> list[tuple[bytes, ...]]:
    """One command per write, for a cluster; NotInClusterError if there is anything to log."""
    if any(group.log for group in groups):
        raise NotInClusterError
    full = b"%d" % when_full
    writes = [write for group in groups for write in group.writes]
    return [(b"EVAL", WRITE_SCRIPT, b"1", write.key, *write.arguments, full) for write in writes]


def cluster_result(groups: Sequence[Group], replies: Sequence[int]) -> CommitResult:
    """What the replies to :func:`cluster_commands` mean; a group with any write that was not done is a conflict."""
    remaining = iter(replies)
    of_group = [list(islice(remaining, len(group.writes))) for group in groups]
    return CommitResult(0, [at for at, done in enumerate(of_group) if not all(done)])


def position_of(value: bytes | None) -> int:
    """Position of the commit that wrote a packed value; 0 if there is none."""
    return 0 if value is None or len(value) < POSITION.stop else int(struct.unpack_from("<Q", value, 8)[0])
