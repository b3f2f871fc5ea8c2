"""Ranges of settings and config keys in words."""

from __future__ import annotations

from typing import Any, Final, get_args

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

BOUNDS: Final = (
    (Ge, "ge", "at least"),
    (Gt, "gt", "above"),
    (Le, "le", "at most"),
    (Lt, "lt", "below"),
)


def limits(field: FieldInfo) -> str:
    """The values that a field allows, as text such as "above 0, at most 3,650"; empty if all of its type."""
    rules = [*field.metadata, *_nested_rules(field.annotation)]
    unit = "characters" if field.annotation in {str, str | None} else "entries"
    return ", ".join(filter(None, (_limit(rule, unit) for rule in rules)))


def _nested_rules(annotation: Any) -> list[object]:
    """The rules of ``Annotated`` parts of a union, such as of ``Annotated[float, Gt(0)] | None``."""
    rules: list[object] = []
    for argument in get_args(annotation):
        for rule in getattr(argument, "__metadata__", ()):
            rules += getattr(rule, "metadata", [rule])
    return rules


def _limit(rule: object, unit: str) -> str:
    for kind, key, words in BOUNDS:
        if isinstance(rule, kind):
            return f"{words} {getattr(rule, key):,}"
    if isinstance(rule, MinLen):
        return "not empty"
    if isinstance(rule, MaxLen):
        return f"at most {rule.max_length} {unit}"
    pattern = getattr(rule, "pattern", None)
    return f"matches `{pattern}`" if pattern else ""
