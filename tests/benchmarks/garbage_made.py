"""What garbage is made of: messages of all that a server says it takes, with values that nobody means."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

TIMEOUT_S: Final = 30.0
SURE: Final = [f"sure-{number}" for number in range(40)]
FED: Final = [f"fed-{number}" for number in range(40)]
"""Customers that any call may change."""
MOST_SAID: Final = 5

GOOD: Final = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Any other one says that the server broke, or hung."""

TEXTS: Final = (
    "", " ", "\0", "a\0b", "\n", "\t", "\r\n", "é", "e\u0301", "\u202e", "\ufeff", "\ud7ff", "\U0010ffff",
    "😀" * 64, "😀" * 65,
    "a" * 64, "a" * 65, "a" * 256, "a" * 257, "a" * 4000, "../../etc/passwd", "tm:log", "tm:live:fed-1",
    "*", "[]", "null", "'; DROP TABLE", "%s%n", "{}", "nan", "-0", "view", "purchase", "visit", "current",
    "\u2028", "ß" * 128, "ﷺ" * 18,
)  # fmt: skip
GOOD_TEXTS: Final = {"event_type": ("view", "purchase", "visit", "cart"), "channel": ("web", "app")}
NUMBERS: Final = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1.0000001, 2.0, 1e-300, 5e-324, 1e9, 1e12, 1.0001e12, 1e300, 1.7976931348623157e308,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
WHOLE: Final = (
    0,
    1,
    -1,
    2,
    127,
    255,
    999_999_999,
    1_000_000_000,
    2**31 - 1,
    -(2**31),
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
)


class Tally:
    """What came of it, and what must not have."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def fault(self, what: str) -> None:
        """Something that must not be."""
        self.faults[what] += 1

    def said(self) -> str:
        """In words."""
        faults = [f"{count} times {what}" for what, count in self.faults.most_common(MOST_SAID)]
        return ", ".join([*(f"{count:,} {what}" for what, count in sorted(self.counts.items())), *faults])


class Method:
    """A method that the server says it has."""

    def __init__(self, path: str, request: Any, *, many: bool, streams: bool) -> None:
        self.path: Final = path
        self.request: Final = request
        self.many: Final = many
        """Whether it takes several requests."""
        self.streams: Final = streams
        """Whether it gives several replies."""


def methods(channel: grpc.Channel) -> list[Method]:
    """All that there is to call, by reflection."""
    ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    listed = next(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S))
    names = [service.name for service in listed.list_services_response.service]
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    files: dict[str, Any] = {}
    for reply in ask(iter(asked), timeout=TIMEOUT_S):
        for data in reply.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files[file.name] = file
    pool = descriptor_pool.DescriptorPool()
    _add(pool, files, ask)
    result = []
    for name in names:
        for method in pool.FindServiceByName(name).methods:
            kind = message_factory.GetMessageClass(method.input_type)
            many, streams = method.client_streaming, method.server_streaming
            result.append(Method(f"/{name}/{method.name}", kind, many=many, streams=streams))
    return result


def _add(pool: descriptor_pool.DescriptorPool, files: dict[str, Any], ask: Any) -> None:
    """Files into a pool, each after those that it needs."""
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        if name not in files:
            request = reflection_pb2.ServerReflectionRequest(file_by_filename=name)
            (reply,) = ask(iter([request]), timeout=TIMEOUT_S)
            (data,) = reply.file_descriptor_response.file_descriptor_proto
            files[name] = descriptor_pb2.FileDescriptorProto.FromString(data)
        for needed in files[name].dependency:
            add(needed)
        pool.Add(files[name])

    for name in list(files):
        add(name)


class Maker:
    """Makes requests; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.pick: Final = random.Random(seed)
        self._wild = 0.0

    def request(self, kind: Any, ids: Sequence[str]) -> bytes:
        """A request: wild ones are refused for the first thing that is wrong, mild ones get further."""
        self._wild = self.pick.choice((0.0, 0.03, 0.1, 0.5))
        data: bytes = self.message(kind, ids).SerializeToString()
        return self.mutated(data) if self.pick.random() < self._wild else data

    def message(self, kind: Any, ids: Sequence[str], depth: int = 0) -> Any:
        """A well-formed message with values that nobody means, and good ones where it would not get far without."""
        made = kind()
        descriptor: Descriptor = made.DESCRIPTOR
        for field in descriptor.fields:
            optional = field.has_presence and self.pick.random() < 0.3
            if optional or self.pick.random() < 0.3 * self._wild or depth > 4:
                continue
            if field.is_repeated:
                self._fill(made, field, ids, depth)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self._inner(field, ids, depth))
            else:
                setattr(made, field.name, self._scalar(field, ids))
        return made

    def _fill(self, made: Message, field: FieldDescriptor, ids: Sequence[str], depth: int) -> None:
        count = self.pick.choice((0, 1, 1, 2, 2, 3, 8, 1001 if self.pick.random() < 0.02 else 1))
        item: Callable[..., Any] = (
            self._inner if field.message_type is not None else lambda field, ids, _depth: self._scalar(field, ids)
        )
        values = [item(field, ids, depth) for _ in range(min(count, 8))]
        getattr(made, field.name).extend(itertools.islice(itertools.cycle(values), count) if values else [])

    def _inner(self, field: FieldDescriptor, ids: Sequence[str], depth: int) -> Any:
        inner: Any = field.message_type
        kind = message_factory.GetMessageClass(inner)
        if self.pick.random() < self._wild:
            return self.message(kind, ids, depth + 1)
        if inner.full_name == "google.protobuf.Timestamp":
            return kind(seconds=int(time.time()) - self.pick.choice((0, 1, 60, 3600, 90_000, 10**6)))
        if inner.full_name == "google.protobuf.Duration":
            return kind(seconds=self.pick.choice((0, 5000, 10**9)))
        return self.message(kind, ids, depth + 1)

    def _scalar(self, field: FieldDescriptor, ids: Sequence[str]) -> Any:
        pick, kind = self.pick, field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = pick.choice(TEXTS) if pick.random() < self._wild else self._good_text(field.name, ids)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return pick.choice(NUMBERS) if pick.random() < self._wild else pick.random()
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return pick.random() < 0.5
        bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
        signed = kind not in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
        least = -(2 ** (bits - 1)) if signed else 0
        return min(max(pick.choice(WHOLE), least), least + 2**bits - 1)

    def _good_text(self, name: str, ids: Sequence[str]) -> str:
        if name in GOOD_TEXTS:
            return self.pick.choice(GOOD_TEXTS[name])
        return self.pick.choice(ids)

    def mutated(self, data: bytes) -> bytes:
        """Bytes that may be no message any more."""
        pick, result = self.pick, bytearray(data)
        for _ in range(pick.choice((1, 1, 2, 5))):
            at = pick.randrange(len(result) + 1)
            match pick.randrange(6):
                case 0 if result:
                    result[at % len(result)] ^= 1 << pick.randrange(8)
                case 1:
                    del result[at:]
                case 2:
                    result[at:at] = pick.randbytes(pick.choice((1, 2, 10)))
                case 3:
                    result += result[: pick.randrange(200)]
                case 4:
                    result += b"\xfa\x7f\x03abc"  # a field that nobody knows
                case _:
                    result += b"\x0b" * pick.choice((1, 200))  # groups within groups
        return bytes(result)
