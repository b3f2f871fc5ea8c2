"""How our command lines end: in an exit code, and for bad input in one clear line."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from feature_store.errors import InputError, StoreUnavailableError


def run_cli(command: click.Command) -> None:
    """Run a command line: bad input ends in one line on stderr and exit code 2, Ctrl-C in 130."""
    try:
        code = command.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except InputError as error:
        _fail(str(error), 2)
    except StoreUnavailableError as error:
        _fail(f"Redis is away: {error}. Check --redis and that the server runs.", 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
