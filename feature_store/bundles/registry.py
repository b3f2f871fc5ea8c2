"""What a registry holds besides the bundles: which version to serve, and which one is being tried out.

================= ===========================================================================================
name              content
================= ===========================================================================================
``<version>/``    a bundle (``feature_store.bundles.bundle``)
``current``       symbolic link: the version to serve
``serving``       symbolic link: the version that servers switched to last; they set it for their next start
``rollout.json``  the version being tried out, if any: ``{"shadow": …}`` or ``{"canary": …, "share": …}``
================= ===========================================================================================

Each changes atomically. Servers poll them, so all servers that share a registry follow.

What is a version follows one rule, however the folder came to be (:func:`versions`). ``<version>`` may be a link to a
folder, as in a Kubernetes volume (``<version>`` → ``..data/<version>``). Of several names of one folder only one is a
version. ``current`` and ``serving`` never are: they lead to a version, directly or by other links. If they are copies,
because a tool followed the links, their manifest says which version they stand for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from feature_store.bundles.bundle import (
    CURRENT,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    VERSION,
    BundleError,
    Manifest,
    folder_of,
    read_manifest,
    set_link,
    version_in,
)
from feature_store.config import first_problem
from feature_store.files import write_atomically

SERVING: Final = "serving"
ROLLOUT_FILE: Final = "rollout.json"
FILES: Final = (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE)

FileStamp = tuple[tuple[int, ...] | None, ...]
"""Per file of a version: modification time, size and inode; None if the file does not exist."""


class Rollout(BaseModel):
    """The version being tried out: a shadow scores without answering, a canary answers a share of the customers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shadow: Annotated[str | None, Field(pattern=VERSION)] = None
    canary: Annotated[str | None, Field(pattern=VERSION)] = None
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0

    @property
    def version(self) -> str | None:
        """The version being tried out; None if there is none."""
        return self.shadow or self.canary

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shadow is not None and self.canary is not None:
            raise ValueError("shadow: it cannot be combined with a canary: name one of them")
        if (self.canary is not None) is not (self.share > 0):
            raise ValueError("share: give a canary a share above 0, and nothing else a share")
        return self


NO_ROLLOUT: Final = Rollout()


def is_version(name: str) -> bool:
    """Whether a name is valid for a version; then its folder is always inside the registry."""
    return re.fullmatch(VERSION, name) is not None


def list_versions(registry: Path) -> list[str]:
    """All versions, valid or not, newest first by name; OSError if the registry cannot be read."""
    names = set(_versions(registry).values())
    if (current := linked_version(registry)) is not None and folder_of(registry, current).is_dir():
        names.add(current)  # it may be there under the name `current` alone
    return sorted(names, reverse=True)


def linked_version(registry: Path, name: str = CURRENT) -> str | None:
    """The version that a link of the registry leads to, or that a copy in its place is.

    Args:
        registry: The registry.
        name: Name of the link.

    Returns:
        The version, which may be missing or damaged; None if there is no such link.

    Raises:
        OSError: The registry cannot be read.
    """
    link = registry / name
    if (direct := _direct_target(link)) is not None:
        return direct
    try:
        status = link.stat()
    except FileNotFoundError:
        if not link.is_symlink():
            return None
        target = Path(os.path.realpath(link)).name  # what it leads to is missing: the version is named all the same
        return target if is_version(target) else None
    return (
        _versions(registry).get(_identity(status))
        or version_in(link)
        or (target if link.is_symlink() and is_version(target := link.resolve().name) else None)
    )


def _direct_target(link: Path) -> str | None:
    """The folder beside a link that it leads to, which is the usual case; None if it is not as simple."""
    try:
        target = link.readlink()
    except OSError:
        return None
    folder = link.parent / target
    is_simple = target.name == str(target) and is_version(target.name) and target.name not in (CURRENT, SERVING)
    return target.name if is_simple and not folder.is_symlink() else None


def _versions(registry: Path) -> dict[tuple[int, int], str]:
    """Names of versions by the identity of their folder; OSError if the registry cannot be read."""
    names: dict[tuple[int, int], str] = {}
    with os.scandir(registry) as entries:
        candidates = sorted(entry.name for entry in entries if is_version(entry.name))
    for name in candidates:
        folder = registry / name
        if name in (CURRENT, SERVING) or not folder.is_dir():
            continue
        key = _identity(folder.stat())
        if key not in names or folder.resolve().name == name:  # a folder's own name comes before those of links
            names[key] = name
    return names


def _identity(status: os.stat_result) -> tuple[int, int]:
    """What tells a folder from all others, by whatever name it is reached."""
    return status.st_dev, status.st_ino


def manifests_in_use(registry: Path, more: Sequence[str] = ()) -> list[Manifest]:
    """Manifests of the versions that are served or tried out, and of ``more``.

    Raises:
        BundleError: A bundle or the rollout cannot be used, or there is no current version.
        OSError: The registry cannot be read.
    """
    if (current := linked_version(registry)) is None:
        raise BundleError(f"{registry} has no {CURRENT} bundle")
    names = {current, *more}
    names.update(filter(None, [read_rollout(registry).version, linked_version(registry, SERVING)]))
    return [read_manifest(folder_of(registry, name)) for name in sorted(names)]


def remember_serving(registry: Path, version: str) -> None:
    """Note the version being served, for servers that start while ``current`` cannot be served; OSError."""
    if linked_version(registry, SERVING) != version:
        set_link(registry, SERVING, version)


def file_stamp(registry: Path, version: str) -> FileStamp:
    """A stamp that changes whenever a file of the version does."""
    folder = folder_of(registry, version)
    return tuple(_stamp(folder / name) for name in FILES)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_rollout(registry: Path) -> Rollout:
    """The version being tried out, from ``rollout.json``; BundleError if the file is not valid."""
    try:
        return Rollout.model_validate_json((registry / ROLLOUT_FILE).read_bytes())
    except FileNotFoundError:
        return NO_ROLLOUT
    except OSError as error:
        raise BundleError(f"{ROLLOUT_FILE} cannot be read ({type(error).__name__})") from error
    except ValidationError as error:
        raise BundleError(f"{ROLLOUT_FILE} is not valid: {first_problem(error)}") from error


def write_rollout(registry: Path, rollout: Rollout) -> None:
    """Write ``rollout.json`` atomically; OSError if that fails."""
    write_atomically(registry / ROLLOUT_FILE, rollout.model_dump_json(exclude_defaults=True) + "\n", durable=True)
