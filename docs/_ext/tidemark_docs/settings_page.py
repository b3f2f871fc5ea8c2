"""The page of the server's settings, from ``service.settings``."""

from __future__ import annotations

from pydantic.fields import FieldInfo
from pydantic_settings import CLI_SUPPRESS

from service.settings import PREFIX, REMOVED, RENAMED, Settings
from tidemark_docs.limits import limits
from tidemark_docs.markdown import code, prose, table, target
from tidemark_docs.types import type_name

INTRODUCTION = f"""\
# Settings of the server

`tidemark serve` reads each setting from its option, otherwise from its environment variable (`{PREFIX}…`), otherwise it
uses the default. A bad value ends the command with exit code 2 and a line that names the option.

Names ending in `_s` are in seconds, `_hours` in hours, and `_bytes` in bytes.
"""


def pages() -> dict[str, str]:
    """The page ``reference/settings.md``."""
    sections = [_section(name, field) for name, field in Settings.model_fields.items()]
    return {"reference/settings.md": "\n".join([INTRODUCTION, *sections, _former_names()])}


def _section(name: str, field: FieldInfo) -> str:
    option = "none" if CLI_SUPPRESS in field.metadata else code("--" + name.replace("_", "-"))
    lines = [f"Option: {option}", f"Environment: {code(PREFIX + name.upper())}", f"Type: {type_name(field.annotation)}"]
    if not field.is_required():
        lines.append(f"Default: {'none' if field.default is None else code(field.default)}")
    if allowed := limits(field):
        lines.append(f"Allowed: {allowed}")
    heading = target(f"setting-{name.replace('_', '-')}", f"## {code(name)}")
    required = "Required. " if field.is_required() else ""
    return "\n".join([heading, f"{required}{prose(field.description or '')}\n", *(f"- {line}" for line in lines), ""])


def _former_names() -> str:
    rows = [[code(old), code(new)] for old, new in RENAMED.items()]
    removed = ", ".join(map(code, sorted(REMOVED)))
    return f"""\
## Settings of earlier releases

The server refuses a former name with a line that says the present one.

{table(["earlier name", "present name"], rows)}
These are no longer settings: {removed}.
"""
