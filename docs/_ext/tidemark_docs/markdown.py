"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
    words = " ".join(text.replace("``", "`").split())
    pieces = words.split("`")
    outside = [piece.replace("<", "\\<").replace("*", "\\*") for piece in pieces[::2]]
    inside = pieces[1::2]
    joined = [outside[0]]
    for quoted, text_after in zip(inside, outside[1:], strict=False):
        joined += [f"`{quoted}`", text_after]
    return "".join(joined)


def block(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def target(label: str, heading: str) -> str:
    """A heading that other pages can link to by its label, as ``[text](#label)``."""
    return f"({label})=\n\n{heading}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
