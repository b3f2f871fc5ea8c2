"""Errors of the feature store, and how a command ends after one."""

from __future__ import annotations

import sys
from typing import NoReturn


class InputError(Exception):
    """A command's argument or a file's content is wrong; the message names the place, the problem and the fix."""


class StoreUnavailableError(Exception):
    """Redis did not answer, or not in time."""


class StoreAwayError(StoreUnavailableError):
    """Redis cannot be used at all at the moment: nothing listens, it hangs, or it says so itself."""


class ReadOnlyStoreError(StoreUnavailableError):
    """Redis answers but accepts no writes."""


class StoreFullError(ReadOnlyStoreError):
    """Redis answers but has no memory left for writes."""


class NotInClusterError(Exception):
    """The operation changes several keys at once, which a Redis cluster may keep on different servers."""


class ArchiveBehindError(Exception):
    """Too many commits wait for the archive."""


class LayoutsChangedError(Exception):
    """The active layouts have changed since a commit was computed."""


def end_with(message: str, code: int) -> NoReturn:
    """End the process with an exit code and one line on stderr."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
