"""Reads Google-style docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example):\s*$", re.MULTILINE)
ITEM: Final = re.compile(r"^    (\w+): ", re.MULTILINE)


def introduction(thing: Any) -> str:
    """The docstring of a class, function or module up to its first section, such as Attributes."""
    return SECTION.split(inspect.getdoc(thing) or "", maxsplit=1)[0].strip()


def attributes(kind: type) -> Mapping[str, str]:
    """Descriptions of attributes by name, from the section Attributes of a class and of its bases."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        parts = SECTION.split(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
        for heading, text in zip(parts[1::2], parts[2::2], strict=True):
            if heading == "Attributes":
                pieces = ITEM.split(text)
                described |= dict(zip(pieces[1::2], map(_joined, pieces[2::2]), strict=True))
    return described


def _joined(text: str) -> str:
    return " ".join(text.split())
