"""Files that may change while the server runs: read again, and used if they are good; else what was used goes on.

Contents are compared, not times, so it does not matter how a file is renewed: written in place, moved, or through a
link. What is read while somebody writes it is torn, and whole the next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from feature_store.errors import InputError

logger: Final = logging.getLogger("tidemark")

LOOK_S: Final = 1.0
"""How often files are looked at. To read a few small ones takes a tenth of a millisecond, in a thread."""

T = TypeVar("T")
Contents = tuple[bytes, ...]


class Watched(Generic[T]):
    """A value made from the contents of files; InputError where it cannot be made at first."""

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[Contents], T]) -> None:
        """``what`` begins each line of the log; ``load`` raises InputError for contents that cannot be used."""
        self._what: Final = what
        self._paths: Final = paths
        self._load: Final = load
        self._told = ""
        try:
            self._contents, self.value = self._loaded()
        except OSError as error:
            raise InputError(f"{what}: {_reason(error)}") from error

    def look(self) -> None:
        """Make the value anew if a file has changed; else, and where that fails, it stays as it is."""
        try:
            if self._read() != self._contents:
                self._contents, self.value = self._loaded()
                logger.info("%s: renewed", self._what)
        except Exception as error:  # whatever it is, the old one goes on, and the next look may find better
            self._tell(_reason(error))
        else:
            self._told = ""

    def _loaded(self) -> tuple[Contents, T]:
        contents = self._read()
        value = self._load(contents)
        if self._read() != contents:  # a library may have read the files by itself meanwhile
            raise InputError(f"{self._what}: the files change while they are read")
        return contents, value

    def _read(self) -> Contents:
        return tuple(path.read_bytes() for path in self._paths)

    def _tell(self, reason: str) -> None:
        """Once for each reason, not at each look."""
        if reason != self._told:
            logger.warning("%s: what is new cannot be used, the old goes on (%s)", self._what, reason)
            self._told = reason


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, InputError) else type(error).__name__


async def keep(watched: Sequence[Watched[Any]]) -> None:
    """Look at files for as long as this runs; in a thread, because a disk may take its time."""
    while watched:
        await asyncio.sleep(LOOK_S)
        for one in watched:
            await asyncio.to_thread(one.look)
