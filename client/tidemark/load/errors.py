"""The error of a load test that a person can correct."""

from __future__ import annotations


class InputError(Exception):
    """An option or a file of a load test is wrong, or the server cannot be reached; the message says what to do."""
