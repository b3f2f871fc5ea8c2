"""Text files that commands write: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from feature_store.errors import InputError


def write_over(path: Path, text: str) -> None:
    """Write a file atomically, in place of one that may be there; InputError where that cannot be."""
    _write(path, text, over=True)


def write_new(path: Path, text: str) -> None:
    """Write a file atomically that is not there yet; InputError where it is, or cannot be written."""
    _write(path, text, over=False)


def _write(path: Path, text: str, *, over: bool) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o666 & ~_umask())
            # A link, other than a rename, fails where the name is taken, even if it was taken just now.
            Path(name).replace(path) if over else os.link(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(f"{path} is there already: name another file, or say --force") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _umask() -> int:
    """What a new file of this process is protected with; temporary files are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
