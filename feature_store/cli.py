"""Runs the project's command lines: exit codes, and one clear line on stderr for bad input."""

from __future__ import annotations

import sys

import click

from feature_store.errors import InputError, StoreUnavailableError, end_with


def run_cli(command: click.Command, name: str | None = None) -> None:
    """Run a command line: bad input ends in one line on stderr and exit code 2, Ctrl-C in 130.

    Args:
        command: the command to run, with the arguments of this process.
        name: what help texts call it, such as ``tidemark replay``; by default the name of the program.
    """
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        end_with(error.format_message(), 2)
    except InputError as error:
        end_with(str(error), 2)
    except StoreUnavailableError as error:
        end_with(f"Redis does not answer ({error}): check --redis, and that Redis is running", 2)
    except (click.Abort, KeyboardInterrupt):
        end_with("stopped", 130)
    except ImportError as error:  # what Ctrl-C becomes while a compiled module is being imported
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        end_with("stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)
