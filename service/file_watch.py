"""Files that may change while the server runs. They are read again; new contents are used if they are valid.

Contents are compared, not times, so a file may be renewed in any way: written in place, moved, or via a link. A file
that is read while it is written is refused and read again at the next look.
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
"""Seconds between looks at the files. Reading a few small files takes a tenth of a millisecond, in a thread."""

T = TypeVar("T")
Contents = tuple[bytes, ...]


class WatchedFiles(Generic[T]):
    """A value made from the contents of files.

    Attributes:
        value: The newest value that could be made.
    """

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[Contents], T]) -> None:
        """Read the files for the first time.

        Args:
            what: What the files are, for the log.
            paths: The files.
            load: Makes the value from the contents of the files; raises InputError if they cannot be used.

        Raises:
            InputError: The files cannot be read or used.
        """
        self._what: Final = what
        self._paths: Final = paths
        self._load: Final = load
        self._last_warning = ""
        try:
            self._contents, self.value = self._loaded()
        except OSError as error:
            raise InputError(f"{what}: {_reason(error)}") from error

    def look(self) -> None:
        """Make the value again if a file has changed; keep the old value if that fails."""
        try:
            if self._read() != self._contents:
                self._contents, self.value = self._loaded()
                logger.info("%s: renewed", self._what)
        except Exception as error:  # whatever it is, the old value stays, and the next look may succeed
            self._warn_once(_reason(error))
        else:
            self._last_warning = ""

    def _loaded(self) -> tuple[Contents, T]:
        contents = self._read()
        value = self._load(contents)
        if self._read() != contents:  # a library may have read the files itself meanwhile
            raise InputError(f"{self._what}: the files change while they are read")
        return contents, value

    def _read(self) -> Contents:
        return tuple(path.read_bytes() for path in self._paths)

    def _warn_once(self, reason: str) -> None:
        if reason != self._last_warning:
            logger.warning("%s: the new contents cannot be used, the old ones stay in use (%s)", self._what, reason)
            self._last_warning = reason


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, InputError) else type(error).__name__


async def watch_files(files: Sequence[WatchedFiles[Any]]) -> None:
    """Look at files until cancelled; in a thread, because a disk may be slow."""
    while files:
        await asyncio.sleep(LOOK_S)
        for watched in files:
            await asyncio.to_thread(watched.look)
