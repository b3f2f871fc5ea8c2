"""Tables of the fields of pydantic models: keys of a config, and fields of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tidemark_docs.docstrings import attributes
from tidemark_docs.limits import limits
from tidemark_docs.markdown import code, prose, table
from tidemark_docs.types import is_model, type_name


def field_table(model: type[BaseModel], heading: str) -> str:
    """A table of the fields of a model.

    Args:
        model: The model.
        heading: What the first column is called.

    Raises:
        LookupError: A field is described neither by its ``description`` nor in the docstring of its class.
    """
    described = attributes(model)
    rows = []
    for name, field in model.model_fields.items():
        meaning = field.description or described.get(name)
        if not meaning:
            raise LookupError(f"{model.__name__}.{name} is not documented: add it to 'Attributes' of its class")
        rows.append([code(name), _type(field), _default(field), prose(meaning)])
    return table([heading, "type", "default", "meaning"], rows)


def sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], bool]]:
    """The models that fields of a model hold: name of the field, the model, and whether there may be several."""
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested is not None:
            yield name, *nested


def nested_model(annotation: Any) -> tuple[type[BaseModel], bool] | None:
    """The model in a type, and whether the type is a list of it."""
    if is_model(annotation):
        return annotation, False
    is_list = get_origin(annotation) in {list, tuple}
    arguments = get_args(annotation)
    for argument in arguments[:1] if get_origin(annotation) is Annotated else arguments:
        if (nested := nested_model(argument)) is not None:
            return nested[0], nested[1] or is_list
    return None


def _type(field: FieldInfo) -> str:
    allowed = limits(field)
    name = type_name(field.annotation)
    return f"{name}, {allowed}" if allowed else name


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or isinstance(default, BaseModel) or default in ((), [], {}):
        return ""
    if isinstance(default, tuple):
        return code(list(default))
    return code(f'"{default}"' if isinstance(default, str) else str(default).lower() if default is True else default)
