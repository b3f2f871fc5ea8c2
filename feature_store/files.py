"""Files that appear whole or not at all, and folders that only their owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from feature_store.errors import InputError

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
"""Permissions of data about customers: its owner alone has access."""


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


def private_folder(folder: Path) -> int:
    """Create a folder for data about customers, which only its owner can read.

    An existing folder may be open to its group, because volumes of containers often are.

    Args:
        folder: The folder; its parents are created with the usual permissions.

    Returns:
        Permissions for files in it: those of the folder's group are those of the folder.

    Raises:
        InputError: The folder exists, and every user of the machine has access to it.
        OSError: It cannot be created.
    """
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & stat.S_IRWXO:
        raise InputError(
            f"{folder} holds data about customers, and every user of this machine has access to it "
            f"(mode {stat.S_IMODE(mode):04o}): run 'chmod o= {folder}', or name a folder in it that does not exist yet"
        )
    return PRIVATE_FILE | mode & stat.S_IRGRP


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
