"""The key of the hashes by which evidence identifies customers: a file beside the registry, never a part of a bundle.

``REGISTRY.key`` holds 32 random bytes as hexadecimal digits, readable by its owner only. All bundles of a registry are
hashed with the same key, so their rows can be compared. A bundle without the key does not reveal whether a
customer is in it: unlike a plain hash, a keyed one (HMAC, RFC 2104) cannot be computed for a list of likely ids.
"""

from __future__ import annotations

import secrets
import stat
from pathlib import Path
from typing import Final

from feature_store.errors import InputError
from feature_store.files import write_atomically

KEY_BYTES: Final = 32
KEY_MODE: Final = 0o600


def default_key_path(registry: Path) -> Path:
    """The key file of a registry: beside it, because the registry itself is copied to servers."""
    folder = registry.absolute()
    return folder.with_name(f"{folder.name}.key")


def read_key(path: Path) -> bytes | None:
    """Read a key.

    Returns:
        The key; None if there is no such file.

    Raises:
        InputError: The file cannot be read, is not a key, or can be read by other users.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the key of customer ids {path} cannot be read ({type(error).__name__}): make it readable for the user "
            "that fits, or name another file with --customer-key"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"the key of customer ids {path} can be read by other users: run chmod 600 {path}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(
            f"the key of customer ids {path} is damaged: restore it from a backup, or delete it. Without it, bundles "
            "that were fitted with it cannot be compared with later ones"
        )
    return key


def read_or_create_key(path: Path) -> bytes:
    """Read a key, or create the file with a new random key if it does not exist.

    Raises:
        InputError: As ``read_key``, or the file cannot be written.
    """
    if (key := read_key(path)) is not None:
        return key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(KEY_BYTES) + "\n", durable=True, overwrite=False, mode=KEY_MODE)
    except FileExistsError:
        pass  # another fit has just created it
    except OSError as error:
        raise InputError(
            f"the key of customer ids {path} cannot be written: {error.strerror}: name another file with --customer-key"
        ) from error
    if (key := read_key(path)) is None:
        raise InputError(f"the key of customer ids {path} was deleted during the fit: fit again")
    return key
