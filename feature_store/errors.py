"""Errors that a person can mend."""

from __future__ import annotations


class InputError(Exception):
    """Something given to a command or read from a file is wrong; the message names it and the mend."""


class StoreUnavailableError(Exception):
    """Redis did not answer, or not in time."""
