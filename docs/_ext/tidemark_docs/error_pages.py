"""A page per reason of an error, from ``service.errors`` and ``service.error_catalog``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from feature_store.state.events import GUARDS, EventReason
from service.error_catalog import ERRORS, ErrorEntry
from service.error_pages import page_path
from service.errors import FINAL, RETRIED, Reason
from tidemark_docs.markdown import block, code, prose, table

INTRODUCTION: Final = """\
# Errors

An error has a status code of gRPC and a reason, in a `google.rpc.ErrorInfo` with the domain `tidemark`. The Python
clients show it as `problem.reason`. Each error also carries the address of its page here, in a `google.rpc.Help`: below
the setting [`docs_url`](#setting-docs-url) if the server has it, otherwise as a path in this documentation.
"""
ORPHAN: Final = "---\norphan: true\n---\n"
"""Keeps a page out of the navigation: with all of them on every page, the site would take twice as long to build."""
ALL: Final = "See also [all errors](index.md).\n"
EVENTS: Final = """\
## Reasons of single events

A call that records events succeeds even if some of its events are rejected. Each rejected event has one of these
reasons, and so does each accepted event whose effect a guard has changed.
"""


def pages() -> dict[str, str]:
    """A page for each reason, and ``reference/errors/index.md`` with the list of them."""
    names = sorted({*map(str, Reason), *map(str, EventReason)})
    result = {_path(name): _page(name, ERRORS[name]) for name in names}
    return {"reference/errors/index.md": _index()} | result


def _path(reason: str) -> str:
    return page_path(reason).removesuffix(".html") + ".md"


def link(reason: str, folder: str) -> str:
    """A link to the page of a reason, from a page in a folder such as ``..``."""
    return f"[{reason}]({folder}{_path(reason).rpartition('/')[2]})"


def _index() -> str:
    calls = [[link(reason, ""), reason.code.name, prose(ERRORS[reason].cause)] for reason in sorted(Reason)]
    events = [[link(reason, ""), _kind(reason), prose(ERRORS[reason].cause)] for reason in sorted(EventReason)]
    parts = [
        INTRODUCTION,
        "## Reasons of calls, and of customers in a batch\n",
        table(["reason", "code", "cause"], calls),
    ]
    parts += [EVENTS, table(["reason", "the event is", "cause"], events)]
    return "\n".join(parts)


def _kind(reason: EventReason) -> str:
    return "accepted" if reason in GUARDS else "rejected"


def _page(name: str, entry: ErrorEntry) -> str:
    parts = [
        ORPHAN,
        f"# {name}\n",
        *(f"- {line}" for line in _facts(name)),
        "",
        ALL,
        f"## Cause\n\n{prose(entry.cause)}\n",
    ]
    parts += [f"## Fix\n\n{prose(entry.fix)}\n", "## Example\n", *_example(entry)]
    return "\n".join(parts)


def _facts(name: str) -> Iterator[str]:
    if name in Reason.__members__:
        reason = Reason[name]
        yield f"Status code: {code(reason.code.name)}"
        retried = reason.code in RETRIED and reason not in FINAL
        yield f"Another attempt may succeed: {'yes, after the delay in RetryInfo' if retried else 'no'}"
    if name in EventReason.__members__:
        yield (
            f"Also the reason of a single event, which is {_kind(EventReason[name])}"
            if name in Reason.__members__
            else (f"Reason of a single event, which is {_kind(EventReason[name])}")
        )


def _example(entry: ErrorEntry) -> Iterator[str]:
    if entry.by_hand:
        yield f"It can be reproduced by fault injection only. {prose(entry.by_hand)}\n"
        return
    if entry.redis == "cluster":
        yield "The server's Redis must be a cluster (`--redis redis+cluster://…`).\n"
    if entry.requires:
        yield f"The example needs {entry.requires}.\n"
    if entry.options:
        yield f"Start the server with {code(' '.join(entry.options))}.\n"
    for name, text in entry.files.items():
        yield f"{code(name)}:\n"
        yield block(text, "toml")
    if "REDIS_URL" in entry.example:
        yield "It damages the Redis that `REDIS_URL` names, so use one that holds nothing else.\n"
    if '"models' in entry.example:
        yield "It changes the registry `models` in the current folder, which the server must use, so use a copy.\n"
    yield block(entry.example, "python")
