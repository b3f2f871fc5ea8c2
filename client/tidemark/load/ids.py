"""The customer ids that a load test asks for: the lines of a file or of standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tidemark.load.errors import InputError

MAX_IDS: Final = 1_000_000


@dataclass(frozen=True)
class IdSource:
    """Customer ids, and where they come from in words for the report."""

    ids: Sequence[str]
    description: str


def read_ids(path: Path) -> IdSource:
    """Read ids from a file, or from standard input if the path is ``-``.

    Args:
        path: a text file in UTF-8 with one id a line. Blank lines are skipped, and at most a million lines are read.

    Raises:
        InputError: the file cannot be read, or holds no ids.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            ids = _ids(sys.stdin)
        else:
            with path.open(encoding="utf-8") as file:
                ids = _ids(file)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{name} cannot be read as UTF-8 text: {type(error).__name__}") from error
    if not ids:
        raise InputError(f"{name} holds no ids: write one id a line")
    return IdSource(ids, f"{len(ids):,} ids from {'standard input' if str(path) == '-' else 'a file'}")


def _ids(lines: Iterable[str]) -> list[str]:
    return [customer_id for line in islice(lines, MAX_IDS) if (customer_id := line.strip())]
