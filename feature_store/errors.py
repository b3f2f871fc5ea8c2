"""Errors that a person can mend, and how a command ends on one."""

from __future__ import annotations

import sys
from typing import NoReturn


class InputError(Exception):
    """Something given to a command or read from a file is wrong; the message names it and the mend."""


class StoreUnavailableError(Exception):
    """Redis did not answer, or not in time."""


class StoreAwayError(StoreUnavailableError):
    """Redis cannot be asked at all just now: nothing listens, it hangs, or it says so itself."""


class ReadOnlyStoreError(StoreUnavailableError):
    """Redis answers, and takes no writes."""


class StoreFullError(ReadOnlyStoreError):
    """Redis answers, and has no memory left for writes."""


class NotInClusterError(Exception):
    """What is asked changes keys that a Redis cluster keeps on different servers."""


class ArchiveBehindError(Exception):
    """Too many events wait for the archive."""


class LayoutsChangedError(Exception):
    """Live events are folded into other layouts by now than a commit was computed for."""


def end_with(message: str, code: int) -> NoReturn:
    """End the process with one line on stderr."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
