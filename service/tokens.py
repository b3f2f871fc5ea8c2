"""``tidemark tokens``: make a token for a caller, and the entry that the file of callers needs for it."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final, get_args

import click
from pydantic import ValidationError

from feature_store.cli import run_cli
from feature_store.config import first_problem
from feature_store.errors import InputError
from service.auth.callers import Entry, Scope

PREFIX: Final = "tidemark_"
"""By which a token that got somewhere it should not be is found and known for what it is."""
TOKEN_BYTES: Final = 32


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Tokens of callers."""


@cli.command()
@click.argument("name")
@click.option("--scopes", required=True, help=f"What the caller may do: {', '.join(get_args(Scope))}, with commas.")
@click.option("--quota", type=float, help="Customers and events a second.")
@click.option("--burst", type=float, help="How many of them at once [default: a second's].")
@click.option("--days", type=click.FloatRange(min=0, min_open=True, max=36_500), help="Until it expires.")
def new(name: str, scopes: str, quota: float | None, burst: float | None, days: float | None) -> None:
    """Make a token for the caller NAME.

    The entry goes to stdout, to be appended to the file of callers (>> callers.toml). The token goes to stderr, this
    once: the file has only its hash.
    """
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    given = {"name": name, "scopes": [scope.strip() for scope in scopes.split(",")], "sha256": sha256}
    try:
        entry = Entry.model_validate({**given, "quota": quota, "burst": burst, "expires": expires})
    except ValidationError as error:
        raise InputError(first_problem(error)) from error
    click.echo(_toml(entry))
    click.echo(f"token of {name}, shown this once: {token}", err=True)


def _toml(entry: Entry) -> str:
    """As TOML: what is neither missing nor a time is written as in JSON."""
    given = entry.model_dump(exclude_none=True)
    expires = given.pop("expires", None)
    lines = ["[[caller]]", *(f"{name} = {json.dumps(value)}" for name, value in given.items())]
    return "\n".join([*lines, *([f"expires = {expires.isoformat()}"] if expires else []), ""])


if __name__ == "__main__":
    run_cli(cli, "tidemark tokens")
