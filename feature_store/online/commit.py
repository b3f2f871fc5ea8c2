"""Commits: all that changes a customer goes through one script, atomically, and only if nobody else was faster.

Every packed value has at bytes 8 to 15 the position of the commit that wrote it. A write says which position it was
computed from; where another one is found, its group (a customer, or two who merge) is left as it is, and the caller
reads and computes again. So nothing is lost however many write, and the fold stays in one place, outside of Redis.
The same goes for which layouts live events are folded into (``feature_store.online.active_layouts``): a commit names
the tag of those that it was computed for, and where there is another one by now, nothing of it is written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from feature_store.errors import NotInClusterError
from feature_store.state.checksum import sealed

POSITION: Final = slice(8, 16)
ANY: Final = b"any"
"""Expected by a write that does not care."""

SCRIPT: Final = b"""
local position = tonumber(redis.call('GET', KEYS[1]) or 0)
local most_waiting = tonumber(ARGV[1])
if most_waiting > 0 and position - tonumber(redis.call('GET', KEYS[2]) or 0) >= most_waiting then
    return {-1}
end
if ARGV[2] ~= '' and (redis.call('GET', KEYS[3]) or '') ~= ARGV[2] then
    return {-2}
end
position = redis.call('INCR', KEYS[1])
local stamp, result, logs, sets = struct.pack('<I8', position), {position}, {}, {}
local key, arg = 4, 4
for group = 1, tonumber(ARGV[3]) do
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
            else
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
if #logs > 0 then
    sets[#sets + 1] = KEYS[1] .. ':' .. position
    sets[#sets + 1] = '[' .. table.concat(logs, ',') .. ']'
end
if #sets > 0 then
    redis.call('MSET', unpack(sets))
end
return result
"""
"""KEYS: log, archived, tag of the layouts, a key per write. ARGV: most commits that may wait for the archive (0 for
any number), the tag that is expected (empty for any), number of groups; per group its number of writes and its log
items; per write the expected position, and the value before and after it (both empty to remove the key). Returns the
commit's position and the groups that were not written; -1 alone where too much waits, -2 where the tag is another. All
values are set by one command, because each that a script calls costs a microsecond; Lua can pass on about 8,000 of
them, which is more than a thousand customers."""

ONE: Final = b"""
if ARGV[1] ~= 'any' and redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then
    return 0
end
if ARGV[2] == '' then
    redis.call('UNLINK', KEYS[1])
else
    local now = redis.call('TIME')
    redis.call('SET', KEYS[1], ARGV[2] .. struct.pack('<I8', now[1] * 1000000 + now[2]) .. ARGV[3])
end
return 1
"""
"""The same for one write, in a cluster, whose servers have no log in common. The time stands for the position: it is
another one with each write, and beyond any that a log has."""


@dataclass(slots=True, eq=False)
class Write:
    """A key's new packed value, None to remove it, if the old one (None: there was none) is still there."""

    key: bytes
    old: bytes | None
    new: bytes | None
    anyway: bool = False

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes]:
        """As the script takes them."""
        expected = ANY if self.anyway else b"" if self.old is None else self.old[POSITION]
        if self.new is None:
            return expected, b"", b""
        new = sealed(self.key, self.new)
        return expected, new[:8], new[16:]


@dataclass(slots=True, eq=False)
class Group:
    """Writes that go together or not at all, and the log items that go with them."""

    writes: list[Write] = field(default_factory=list)
    log: Sequence[str] = ()


def keys_and_arguments(
    groups: Sequence[Group], common: Sequence[bytes], most_waiting: int = 0, tag: bytes = b""
) -> tuple[list[bytes], list[bytes]]:
    """KEYS and ARGV of the script; ``common`` are the keys that all commits share, in its order."""
    keys, arguments = list(common), [b"%d" % most_waiting, tag, b"%d" % len(groups)]
    for group in groups:
        arguments += (b"%d" % len(group.writes), ",".join(group.log).encode())
        for write in group.writes:
            keys.append(write.key)
            arguments += write.arguments
    return keys, arguments


def each_write(groups: Sequence[Group]) -> list[tuple[bytes, ...]]:
    """A command for each write of each group; NotInClusterError where there is something to log."""
    if any(group.log for group in groups):
        raise NotInClusterError
    return [(b"EVAL", ONE, b"1", write.key, *write.arguments) for group in groups for write in group.writes]


def overtaken(groups: Sequence[Group], replies: Sequence[int]) -> list[int]:
    """The groups of which some write was not done, by what each replied."""
    done = iter(replies)
    of_group = [list(islice(done, len(group.writes))) for group in groups]
    return [at for at, each in enumerate(of_group) if not all(each)]


def position_of(value: bytes | None) -> int:
    """The position of the commit that wrote a packed value, 0 where there is none."""
    return 0 if value is None or len(value) < POSITION.stop else int(struct.unpack_from("<Q", value, 8)[0])
