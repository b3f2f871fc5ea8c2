"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from feature_store.errors import InputError


def write_atomically(
    path: Path, content: str | bytes, *, durable: bool = False, overwrite: bool = True, mode: int | None = None
) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part.

    The content goes to a hidden file in the same folder first (``.NAME.<8 hex digits>``); only a killed process leaves
    one behind.

    Args:
        path: The file.
        content: Text is written as UTF-8.
        durable: Return only once content and name are on disk.
        overwrite: Replace a file that exists.
        mode: Permissions of the file, set before it has any content; by default those of any new file.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        OSError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if mode is not None:
            temporary.touch(mode, exist_ok=False)
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename it fails if the name was taken in the meantime
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Return once a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_output(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write the file that a command was asked for, atomically.

    Raises:
        InputError: The file exists and ``overwrite`` is false, or it cannot be written.
    """
    try:
        write_atomically(path, text, overwrite=overwrite)
    except FileExistsError as error:
        raise InputError(f"{path} already exists: name another file, or use --force") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
