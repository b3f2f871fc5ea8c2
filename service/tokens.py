"""``tidemark tokens``: create a token for a caller, and the entry that the file of callers needs for it."""

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
"""Marks a token as one of tidemark, so that secret scanners can find it where it should not be."""
TOKEN_BYTES: Final = 32


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Create tokens for callers."""


@cli.command()
@click.argument("name")
@click.option(
    "--scopes", required=True, help=f"What the caller may do, separated by commas: {', '.join(get_args(Scope))}."
)
@click.option("--quota", type=float, help="Customers and events a second.")
@click.option("--burst", type=float, help="How many of them at once [default: the quota of one second].")
@click.option("--days", type=click.FloatRange(min=0, min_open=True, max=36_500), help="Days until the token expires.")
def new(name: str, scopes: str, quota: float | None, burst: float | None, days: float | None) -> None:
    """Create a token for the caller NAME.

    The entry goes to stdout: append it to the file of callers (>> callers.toml). The token goes to stderr and is shown
    only once, because the file holds only its hash.
    """
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    values = {
        "name": name,
        "scopes": [scope.strip() for scope in scopes.split(",")],
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "quota": quota,
        "burst": burst,
        "expires": expires,
    }
    try:
        entry = Entry.model_validate(values)
    except ValidationError as error:
        raise InputError(first_problem(error)) from error
    click.echo(_toml(entry))
    click.echo(f"token of {name}, shown only once: {token}", err=True)


def _toml(entry: Entry) -> str:
    """The entry as TOML. All values but times are written as in JSON; missing ones are left out."""
    values = entry.model_dump(exclude_none=True)
    expires = values.pop("expires", None)
    lines = ["[[caller]]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    return "\n".join([*lines, *([f"expires = {expires.isoformat()}"] if expires else []), ""])


if __name__ == "__main__":
    run_cli(cli, "tidemark tokens")
