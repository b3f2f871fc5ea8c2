"""Pieces of Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

OPTION: Final = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)")
"""An option of a command outside of code."""
ROLE: Final = re.compile(r":(meth|func|class|mod):`")
"""What precedes a name of Python in a docstring."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars and line ends in cells are escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def code(text: object) -> str:
    """Text in the font of code."""
    return f"`{text}`"


def prose(text: str) -> str:
    """Markdown of a docstring or comment: double backticks become single ones, and lines are joined.

    Placeholders such as ``<version>`` are kept from being taken for HTML.
    """
    plain = ROLE.sub("`", text.replace("``", "`"))
    words = " ".join(OPTION.sub(r"`\g<0>`", plain).split())
    pieces = words.split("`")
    outside = [piece.replace("<", "\\<").replace("*", "\\*") for piece in pieces[::2]]
    inside = pieces[1::2]
    joined = [outside[0]]
    for quoted, text_after in zip(inside, outside[1:], strict=False):
        joined += [f"`{quoted}`", text_after]
    return "".join(joined)


def paragraphs(text: str) -> str:
    """Markdown of a docstring or comment with several paragraphs; indented lines stay as they are, as code."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        if part.strip() == "::":
            continue
        if part.startswith("==="):
            parts.append(_simple_table(part))
            continue
        is_code = all(line.startswith("   ") for line in part.splitlines())
        if part.startswith("- "):
            items = re.split(r"^- ", part, flags=re.MULTILINE)[1:]
            parts.append("".join(f"- {prose(item)}\n" for item in items))
            continue
        parts.append(block(textwrap.dedent(part), "text") if is_code else prose(part) + "\n")
    return "\n".join(parts)


def block(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def target(label: str, heading: str) -> str:
    """A heading that other pages can link to by its label, as ``[text](#label)``."""
    return f"({label})=\n\n{heading}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _simple_table(text: str) -> str:
    """A table of a docstring whose columns are marked by lines of equals signs."""
    marks, headings, _, *rows = text.splitlines()[:-1]
    columns = [(mark.start(), mark.end()) for mark in re.finditer("=+", marks)]
    ends = [start for start, _ in columns[1:]] + [None]
    cells = [
        [line[start:end].strip() for (start, _), end in zip(columns, ends, strict=True)] for line in (headings, *rows)
    ]
    return table(cells[0], [[cell.replace("``", "`") for cell in row] for row in cells[1:]])
