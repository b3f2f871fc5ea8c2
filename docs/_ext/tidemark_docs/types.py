"""Types of settings and config keys in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

NAMES: Final[dict[object, str]] = {
    bool: "true or false",
    float: "number",
    int: "whole number",
    str: "text",
    Path: "path",
    SecretStr: "secret text",
    Any: "any value",
}
LISTS: Final = (list, tuple, Sequence)


def type_name(annotation: Any) -> str:
    """A type in words, such as "whole number" or "list of text"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in {Union, UnionType}:
        return " or ".join(type_name(argument) for argument in arguments if argument is not NoneType)
    if origin in LISTS:
        return "sections" if is_model(arguments[0]) else f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"table of {type_name(arguments[1])} by name"
    return NAMES.get(annotation) or "section"


def is_model(annotation: Any) -> bool:
    """Whether a type is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
