"""The page of the commands, from the commands of ``service.cli``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from service.cli import COMMANDS, SECTIONS, cli
from tidemark_docs.markdown import block, code, paragraphs, prose, table, target

INTRODUCTION = """\
# Commands

`tidemark` has one command for each task. Each has `--help`. Bad input ends a command with one line on standard error
and exit code 2, and nothing is written. Ctrl-C ends it with exit code 130.

Each command needs one or more extras of the distribution, as in `pip install 'tidemark[service]'`.
"""


def pages() -> dict[str, str]:
    """The page ``reference/commands.md``."""
    parts = [INTRODUCTION]
    for title, commands in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += map(_command, commands)
    return {"reference/commands.md": "\n".join(parts)}


def _command(name: str) -> str:
    context = click.Context(cli, info_name="tidemark")
    command = cli.get_command(context, name)
    if command is None:
        raise LookupError(f"tidemark {name} is not a command")
    parts = [target(f"command-{name}", f"### `tidemark {name}`"), *_help(command, context, name)]
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            if (nested := command.get_command(context, part)) is not None:
                group = click.Context(command, context, info_name=name)
                parts += [f"#### `tidemark {name} {part}`\n", *_help(nested, group, part)]
    parts.append(f"Extras: {', '.join(map(code, COMMANDS[name].extras.split(',')))}.\n")
    return "\n".join(parts)


def _help(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    """Usage, explanation and options of a command."""
    context = click.Context(command, parent, info_name=name)
    yield paragraphs(inspect.cleandoc(command.help or ""))
    yield block(command.get_usage(context).removeprefix("Usage: "), "text")
    if name == "serve":
        yield "The options are the [settings of the server](settings.md).\n"
    rows = [row for parameter in command.params if (row := _option(parameter, context))]
    if rows:
        yield table(["option", "default", "meaning"], rows)


def _option(parameter: click.Parameter, context: click.Context) -> list[str] | None:
    """A row of the table of options; None for a parameter that is hidden, or shown by the usage alone."""
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return None
    names = [*parameter.opts, *parameter.secondary_opts]
    values = "" if parameter.is_flag else f" {parameter.make_metavar(context)}"
    written = ", ".join(code(name + values) for name in names)
    meaning = prose(parameter.help or "")
    if isinstance(parameter.envvar, str):
        meaning += f" Environment variable: {code(parameter.envvar)}."
    return [written, _default(parameter), meaning]


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.default is None or callable(option.default) or "UNSET" in repr(option.default):
        return ""
    if isinstance(option.default, (list, tuple)):
        return ", ".join(code(value) for value in option.default)
    return code(option.default)
