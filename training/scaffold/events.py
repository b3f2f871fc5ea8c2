"""Scaffolding a config for a table of events: its columns, event types and horizons."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb

from feature_store.config import Source, parse_config
from feature_store.errors import InputError
from feature_store.offline.source import VALID_FROM
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier, literal
from feature_store.timestamps import utc_date
from training.config import Economics, TrainingConfig
from training.data.columns import text_list
from training.scaffold import toml_text
from training.scaffold.cadence import Cadence, HorizonProposal, measure, propose_horizons
from training.scaffold.column_roles import ColumnRoles, find_roles
from training.scaffold.formats import time_format
from training.scaffold.synonyms import BUYING, CARTING, NAMES, VALID_FROM_NAMES, VIEWING, parts, plain, selected, snake
from training.scaffold.tables import InputTable, connect_to, read_table

PURCHASE: Final = "purchase"


@dataclass(frozen=True)
class Scaffold:
    """A generated config: its text, facts about the data, and guesses that a person should check (one line each)."""

    text: str
    facts: list[str]
    unsure: list[str]


@dataclass(frozen=True)
class EventTypes:
    """Numbers of events by type, the most frequent first, and the types of purchases, views and carts."""

    counts: dict[str, int]
    purchase: str
    view: str | None
    cart: str | None


def scaffold_events(events: str, attributes: str | None, base: Path) -> Scaffold:
    """Generate a config for a table of events.

    Args:
        events: A file, or SQL.
        attributes: A file, or SQL, with one row per customer.
        base: The folder that the config will be in; its paths are relative to it.

    Returns:
        The config, which has been parsed as a check.

    Raises:
        InputError: If a table cannot be read, or has no column for the customer or the time.
    """
    with connect_to(events, *([] if attributes is None else [attributes])) as connection:
        table = read_table(connection, events, base, "data")
        roles = find_roles(connection, table)
        types = find_event_types(connection, table, roles)
        queries, paths = {"events": events_sql(table, roles)}, dict(table.paths)
        if attributes is not None:
            other = read_table(connection, attributes, base, "customers")
            queries["attributes"] = attributes_sql(connection, other, roles)
            paths |= other.paths
    text = toml_text.source("source", queries, paths, {})
    source = Source.model_validate(tomllib.loads(text)["source"])
    source.relative_to(base)
    with OfflineStore(source) as store:
        facts = _facts(store, types, roles)
        rest, unsure = _rest(store, types, roles)
    unsure = [*roles.unsure, *unsure]
    scaffold = Scaffold(f"{toml_text.heading(facts, unsure)}\n{text}\n{rest}", facts, unsure)
    check(scaffold.text, base)
    return scaffold


def _facts(store: OfflineStore, types: EventTypes, roles: ColumnRoles) -> list[str]:
    """Facts about the source, one line each."""
    summary = store.summary
    counts = text_list(f"{name} {number:,}" for name, number in types.counts.items())
    span = f"{utc_date(summary.start)} to {utc_date(summary.end)}"
    return [
        *(f"{role} is {words}" for role, words in roles.words.items()),
        f"{summary.events:,} events of {summary.customers:,} customers, {span}",
        f"event types: {counts}",
        f"purchase: {types.purchase}, view: {types.view or 'none'}, cart: {types.cart or 'none'}",
        *(f"{number:,} rows are left out {reason}" for reason, number in summary.left_out.items()),
    ]


def check(text: str, base: Path) -> TrainingConfig:
    """Parse the generated config like any other; InputError if it is invalid."""
    return parse_config(TrainingConfig, tomllib.loads(text), base / "proposed.toml")


def events_sql(table: InputTable, roles: ColumnRoles) -> str:
    """SQL for the canonical events."""
    lines = ",\n    ".join(selected(_escaped(column), role) for role, column in roles.sql.items())
    return f"SELECT\n    {lines}\nFROM {table.sql}"


def attributes_sql(connection: duckdb.DuckDBPyConnection, table: InputTable, roles: ColumnRoles) -> str:
    """SQL for the attributes, renamed to valid feature names, and for the time from which they are valid, if any."""
    ids = [name for name in table.columns if plain(name) in NAMES["customer_id"]]
    same = [name for name in table.columns if roles.words["customer_id"].split(" (")[0] == name]
    if not ids and not same:
        raise InputError(
            f"--attributes: no column looks like the customer's id (there are {text_list(table.columns)}): give a "
            "SELECT that names one AS customer_id"
        )
    customer = (same or sorted(ids, key=lambda name: NAMES["customer_id"].index(plain(name))))[0]
    lines, names = [selected(_whole(table, customer), "customer_id")], {"customer_id", VALID_FROM}
    times = {
        name: form
        for name, kind in table.columns.items()
        if name != customer and (form := time_format(connection, table.name, name, kind)) is not None
    }
    since = min(
        (name for name in times if plain(name) in VALID_FROM_NAMES),
        key=lambda name: VALID_FROM_NAMES.index(plain(name)),
        default=None,
    )
    if since is not None:
        lines.append(selected(_escaped(times[since].sql), VALID_FROM))
        roles.unsure.append(
            f"attribute '{since}' is taken as the time from which the row is valid ({VALID_FROM}): before it, the "
            "attributes of a customer are unknown"
        )
    else:
        roles.unsure.append(
            "attributes have no time from which they are valid: today's values are used at every past cut-off, so keep "
            f"only what does not change, or select the time of each change AS {VALID_FROM}"
        )
    for name in table.columns:
        if name in (customer, since):
            continue
        if name in times:
            roles.unsure.append(
                f"attribute '{name}' is a time and is left out: make it a number in SQL, such as days since then"
            )
            continue
        lines.append(selected(_escaped(identifier(name)), identifier(snake(name, names))))
    return "SELECT\n    " + ",\n    ".join(lines) + f"\nFROM {table.sql}"


def find_event_types(connection: duckdb.DuckDBPyConnection, table: InputTable, roles: ColumnRoles) -> EventTypes:
    """Find the event types, and the purchase among them by name or because it alone has amounts.

    Without a column for the type, every event counts as a purchase. Without amounts, every purchase counts 1. Adds the
    missing columns to ``roles``.
    """
    kind, amount = roles.sql.get("event_type"), roles.sql.get("amount", "NULL")
    if kind is None:
        kind = roles.sql["event_type"] = f"'{PURCHASE}'"
        roles.words["event_type"] = f"always '{PURCHASE}'"
        if amount == "NULL":
            roles.unsure.append("there is no event type and no amount: every row is taken as a purchase")
    rows = connection.execute(
        f"SELECT {kind} AS kind, count(*) AS n, count({amount}) / n FROM {table.name} WHERE kind IS NOT NULL "
        "GROUP BY kind ORDER BY n DESC, kind"
    ).fetchall()
    if not rows:
        raise InputError("the table has no rows with an event type")
    types = _event_types(rows, roles)
    if amount == "NULL":
        roles.sql["amount"] = "1" if len(rows) == 1 else f"CASE {kind} WHEN {literal(types.purchase)} THEN 1 END"
        roles.words["amount"] = f"1 for each '{types.purchase}'"
        roles.unsure.append(
            "there are no amounts: value is a number of purchases, so costs of offers are in purchases too"
        )
    return types


def _event_types(rows: Sequence[tuple[str, int, float]], roles: ColumnRoles) -> EventTypes:
    """Assign types from rows of (type, number of events, share with an amount), the most frequent first."""
    counts = {name: number for name, number, _ in rows}
    purchase = named(list(counts), BUYING)
    if purchase is None:
        with_amounts = [name for name, _, share in rows if share > 0.5]  # noqa: PLR2004 - most of them
        purchase = with_amounts[0] if len(with_amounts) == 1 else rows[-1][0]
        why = "it alone has amounts" if len(with_amounts) == 1 else "it is the rarest"
        if len(counts) > 1:
            roles.unsure.append(f"no event type is named like a purchase: '{purchase}' is used because {why}")
    others = [name for name in counts if name != purchase]
    return EventTypes(counts, purchase, named(others, VIEWING), named(others, CARTING))


def named(types: Sequence[str], words: Sequence[str]) -> str | None:
    """The first type that matches a word: types named exactly so come before types that contain the word."""
    for word in words:
        for kind in types:
            if plain(kind) in (word, f"{word}s"):
                return kind
    return next((kind for word in words for kind in types if word in parts(kind)), None)


def _rest(store: OfflineStore, types: EventTypes, roles: ColumnRoles) -> tuple[str, list[str]]:
    """The sections after the source, and the guesses in them."""
    unsure = []
    typical = store.connection.execute(
        "SELECT median(amount) FROM events WHERE event_type = $purchase AND amount > 0", {"purchase": types.purchase}
    ).fetchall()[0][0]
    if not typical:
        unsure.append(f"events of type '{types.purchase}' have no amounts: no offer will ever pay off without them")
    counted = roles.words["amount"].startswith("1 for each")
    figures = toml_text.economics(typical or 1.0, margin=1.0 if counted else 0.25)
    config: dict[str, Any] = {
        "source": {"events": "SELECT 1"},
        "candidates": {},
        "economics": {"event": types.purchase, **figures},
    }
    cadence, days, why = _churn(store, types, config)
    if why:
        unsure.append(why)
    if days.short:
        unsure.append(f"the history is too short for training: {days.short}")
    text = toml_text.section(
        "churn",
        {"event": cadence.event, **days.sections()["churn"]},
        _cadence_words(cadence),
    )
    text += "\n" + toml_text.section("propensity", {"event": types.purchase, **days.sections()["propensity"]})
    text += "\n" + toml_text.section("evaluation", days.sections()["evaluation"], "cut-offs that fit the history")
    assumption = f"the data has no margins or costs; these are scaled to a median amount of {typical or 1:,.4g}"
    keys = {"event": types.purchase, **days.sections()["economics"]}
    text += "\n" + toml_text.economics_sections(Economics.model_validate(config["economics"]), keys, assumption)
    text += "\n" + toml_text.section(
        "candidates", {"half_lives_days": days.half_lives}, "training selects among these features"
    )
    if types.view is not None and "item_id" in roles.sql:
        text += "\n" + toml_text.section("interests", {"view": types.view, "purchase": types.purchase})
    return text, unsure


def _churn(store: OfflineStore, types: EventTypes, config: dict[str, Any]) -> tuple[Cadence, HorizonProposal, str]:
    """Choose the event that defines churn: the purchase, or a view if repeat purchases are rare.

    Returns:
        The cadence of the event, the horizons, and the reason for an unusual choice (empty if there is none).
    """
    start, end = store.summary.start, store.summary.end
    buying = measure(store.connection, types.purchase)
    days = propose_horizons(config, buying, start, end)
    if (buying.is_habit and not days.short and days.churn >= (buying.gap_days or 0)) or types.view is None:
        why = "" if buying.is_habit else f"few customers have a second '{types.purchase}': churn is poorly defined here"
        if buying.is_habit and days.churn < (buying.gap_days or 0):
            why = f"customers come back after {buying.gap_days:.0f} days; the history is too short for such a churn "
            "horizon"
        return buying, days, why
    viewing = measure(store.connection, types.view)
    why = f"'{types.purchase}' is too rare to define churn: churn is the absence of a '{types.view}' instead"
    days = propose_horizons(config, viewing, start, end)
    return viewing, replace(days, propensity=days.churn), why


def _cadence_words(cadence: Cadence) -> str:
    if cadence.gap_days is None:
        return "no customer comes back in this data: a guess"
    return (
        f"{cadence.repeaters / cadence.customers:.0%} of {cadence.customers:,} customers come back, after a "
        f"median of {cadence.gap_days:.3g} days"
    )


def _escaped(column: str) -> str:
    """SQL with dollar signs doubled, because in a config a single one begins the name of a folder."""
    return column.replace("$", "$$")


def _whole(table: InputTable, name: str) -> str:
    column = _escaped(identifier(name))
    return f"{column}::BIGINT" if table.columns[name] in ("DOUBLE", "FLOAT") else column
