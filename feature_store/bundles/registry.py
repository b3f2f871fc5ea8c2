"""What stands in a registry beside the bundles: which one is to be served, and which one is tried out.

================= ===========================================================================================
name              what
================= ===========================================================================================
``<version>/``    a bundle (``feature_store.bundles.bundle``)
``current``       symbolic link: the version to serve
``serving``       symbolic link: the version that servers went over to last, kept by them for their next start
``rollout.json``  the version that is tried out, if there is one: ``{"shadow": …}`` or ``{"canary": …, "share": …}``
================= ===========================================================================================

Each changes in one step, and servers look at them again and again, so all that share a registry follow.
"""

from __future__ import annotations

import errno
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
    point,
    read_manifest,
)
from feature_store.config import first_problem
from feature_store.files import write_atomically

SERVING: Final = "serving"
ROLLOUT_FILE: Final = "rollout.json"
FILES: Final = (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE)

Stamp = tuple[tuple[int, ...] | None, ...]
"""Of a version's files: what changes when they do."""


class Rollout(BaseModel):
    """What is tried out: a shadow, which scores without answering, or a canary, which answers a share of customers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shadow: Annotated[str | None, Field(pattern=VERSION)] = None
    canary: Annotated[str | None, Field(pattern=VERSION)] = None
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0

    @property
    def version(self) -> str | None:
        """The version that is tried out, None where there is none."""
        return self.shadow or self.canary

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.shadow is not None and self.canary is not None:
            raise ValueError("shadow: it goes with no canary: name one of them")
        if (self.canary is not None) is not (self.share > 0):
            raise ValueError("share: a canary has one above 0, and nothing else has")
        return self


NO_ROLLOUT: Final = Rollout()


def is_version(name: str) -> bool:
    """Whether a bundle may have this name; it then lies in the registry, wherever it comes from."""
    return re.fullmatch(VERSION, name) is not None


def versions(registry: Path) -> list[str]:
    """All bundles, whole or not, newest first by name; OSError where the registry cannot be read."""
    with os.scandir(registry) as entries:
        found = [one.name for one in entries if one.is_dir(follow_symlinks=False) and is_version(one.name)]
    return sorted(found, reverse=True)


def linked(registry: Path, name: str = CURRENT) -> str | None:
    """The version that a link names, None where there is no such link; OSError where the registry cannot be read."""
    try:
        return (registry / name).readlink().name
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a copy of the folder that it named, which nobody can point elsewhere
            return None
        raise


def in_use(registry: Path, further: Sequence[str] = ()) -> list[Manifest]:
    """Manifests of what is served or tried out, and of further versions; BundleError or OSError if that is unclear."""
    if (current := linked(registry)) is None:
        raise BundleError(f"{registry} has no {CURRENT} bundle")
    names = {current, *further}
    names.update(filter(None, [read_rollout(registry).version, linked(registry, SERVING)]))
    return [read_manifest(registry / name) for name in sorted(names)]


def remember_serving(registry: Path, version: str) -> None:
    """Let servers that start while ``current`` cannot be served begin with this one; OSError where that fails."""
    if linked(registry, SERVING) != version:
        point(registry, SERVING, version)


def stamp(registry: Path, version: str) -> Stamp:
    """What tells that a version's files have changed; a file that is not there has None."""
    return tuple(_stamp(registry / version / name) for name in FILES)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_rollout(registry: Path) -> Rollout:
    """What is tried out; BundleError where the file says something else."""
    try:
        return Rollout.model_validate_json((registry / ROLLOUT_FILE).read_bytes())
    except FileNotFoundError:
        return NO_ROLLOUT
    except OSError as error:
        raise BundleError(f"{ROLLOUT_FILE} cannot be read ({type(error).__name__})") from error
    except ValidationError as error:
        raise BundleError(f"{ROLLOUT_FILE} is not valid: {first_problem(error)}") from error


def write_rollout(registry: Path, rollout: Rollout) -> None:
    """Keep what is tried out, in one step; OSError where that fails."""
    write_atomically(registry / ROLLOUT_FILE, rollout.model_dump_json(exclude_defaults=True) + "\n", durable=True)
