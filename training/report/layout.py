"""What a section of the report consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from training.report.drawing import Picture, compact


@dataclass(frozen=True)
class Table:
    """A table of text cells; all columns except the first ``names`` are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Part:
    """A part of a section, with a heading unless that is empty."""

    heading: str = ""
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A section; it is shown only if it has parts."""

    slug: str
    title: str
    lead: str
    parts: list[Part] = field(default_factory=list)


def by(table: Sequence[Any], key: str) -> Iterator[tuple[str, list[Any]]]:
    """Group the lines of a table by a field, in the order of first appearance."""
    order = list(dict.fromkeys(getattr(line, key) for line in table))
    ranked = sorted(table, key=lambda line: order.index(getattr(line, key)))
    for name, lines in groupby(ranked, key=lambda line: getattr(line, key)):
        yield name, list(lines)


def joined(section: Section) -> Section:
    """Merge the parts of a section so that their pictures are side by side."""
    pictures = [picture for part in section.parts for picture in part.pictures]
    section.parts[:] = [Part(pictures=pictures)] if pictures else []
    return section


def interval_text(low: float, high: float) -> str:
    """The ends of an interval, rounded."""
    return f"{compact(low)} to {compact(high)}"


def rate_text(share: float | None) -> str:
    """A share in per cent; empty for None."""
    return "" if share is None else f"{share:.1%}"
