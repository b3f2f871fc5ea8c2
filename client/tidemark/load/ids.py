"""The ids to ask for, from a file. Those of Redis are in ``stored``, which takes longer to import than all the rest."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Final

from feature_store.errors import InputError

MOST_IDS: Final = 1_000_000


def from_file(path: Path) -> list[str]:
    """The lines of a file that are not blank, a million at most; InputError where there are none."""
    try:
        with path.open(encoding="utf-8") as file:
            found = [line for text in islice(file, MOST_IDS) if (line := text.strip())]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {type(error).__name__}") from error
    if not found:
        raise InputError(f"{path} holds no ids: one a line is wanted")
    return found
