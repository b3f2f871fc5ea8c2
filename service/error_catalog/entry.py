"""What the documentation says of one reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TARGET = "127.0.0.1:50051"
"""The server that examples call."""


@dataclass(frozen=True)
class ErrorEntry:
    """Cause, fix and example of a reason.

    Attributes:
        cause: Why the server answers with the reason.
        fix: What to do.
        example: A Python program that gets the reason from the server at TARGET. It ends with the error, or prints the
            reason. Where it damages something, it uses the environment variable ``REDIS_URL``, or the registry
            ``models`` in the current folder. Empty if no program can get the reason every time.
        options: Options that the server needs for the example.
        files: Files in the server's folder that the options name, by name.
        redis: The Redis that the server needs for the example.
        requires: What else the example needs, as the end of a sentence.
        by_hand: How the reason comes about, if there is no example: by fault injection.
    """

    cause: str
    fix: str
    example: str = ""
    options: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    redis: Literal["single", "cluster"] = "single"
    requires: str = ""
    by_hand: str = ""


def scoring(call: str, imports: str = "") -> str:
    """An example that calls ScoringClient; ``call`` uses ``client``."""
    return f'{imports}from tidemark import ScoringClient\n\nwith ScoringClient("{TARGET}") as client:\n    {call}'


def customers(*calls: str) -> str:
    """An example that calls CustomerClient; ``calls`` use ``customers``."""
    body = "\n    ".join(calls)
    return f'from tidemark import CustomerClient\n\nwith CustomerClient("{TARGET}") as customers:\n    {body}'


def models(*calls: str, imports: str = "from tidemark import ModelClient", before: str = "") -> str:
    """An example that calls ModelClient; ``calls`` use ``client``. ``before``: what is done first."""
    body = "\n    ".join(calls)
    return f'{imports}\n\n{before}with ModelClient("{TARGET}", timeout_s=30) as client:\n    {body}'


def rejected_event(event: str, imports: str = "", detail: str = "rejected") -> str:
    """An example that records one event and prints the reason of its rejection, or of the guard that changed it."""
    return (
        f"{imports}from tidemark import Event, EventClient\n\n"
        f'with EventClient("{TARGET}") as events:\n'
        f"    recorded = events.record([{event}])\n"
        f"    print(recorded.{detail}[0].reason)"
    )


def stub(service: str, method: str, request: str) -> str:
    """An example that calls a generated stub, for requests that the clients do not send."""
    module = f"{service}_pb2"
    name = {"scoring": "ScoringService", "events": "EventService", "models": "ModelService"}[service]
    return (
        f"import grpc\nfrom tidemark.v1 import {module}, {module}_grpc\n\n"
        f'with grpc.insecure_channel("{TARGET}") as channel:\n'
        f"    stub = {module}_grpc.{name}Stub(channel)\n"
        f"    stub.{method}({module}.{request})"
    )
