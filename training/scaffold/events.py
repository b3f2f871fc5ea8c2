"""A first config for a shop's table of events: its columns, the types of events, and horizons that fit."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb

from feature_store.config import Source, parse_config
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier, literal
from feature_store.timestamps import utc_date
from training.audit.columns import text_list
from training.config import Economics, TrainingConfig
from training.scaffold import toml_text as toml
from training.scaffold.cadence import Plan, Rhythm, measure, plan
from training.scaffold.column_roles import Roles, find_roles
from training.scaffold.formats import time_form
from training.scaffold.synonyms import BUYING, CARTING, NAMES, VIEWING, parts, plain, selected, snake
from training.scaffold.tables import Given, read_given

PURCHASE: Final = "purchase"


@dataclass(frozen=True)
class Proposal:
    """A config's text, and lines that say what was found and what is unsure."""

    text: str
    found: list[str]
    unsure: list[str]


@dataclass(frozen=True)
class Kinds:
    """Types of events, with how many there are, the most frequent first; which is the purchase, a view, a cart."""

    counts: dict[str, int]
    purchase: str
    view: str | None
    cart: str | None


def propose_events(events: str, attributes: str | None, base: Path) -> Proposal:
    """A config for a table of events, a file or SQL; ``base`` is the folder that the config will be in.

    InputError where the tables cannot be read, or lack what nobody can guess.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        given = read_given(connection, events, base, "data")
        roles = find_roles(connection, given)
        kinds = find_kinds(connection, given, roles)
        queries, paths = {"events": events_sql(given, roles)}, dict(given.paths)
        if attributes is not None:
            other = read_given(connection, attributes, base, "customers")
            queries["attributes"] = attributes_sql(connection, other, roles)
            paths |= other.paths
    text = toml.source("source", queries, paths, {})
    source = Source.model_validate(tomllib.loads(text)["source"])
    source.relative_to(base)
    with OfflineStore(source) as store:
        found = _found(store, kinds, roles)
        rest, unsure = _rest(store, kinds, roles)
    unsure = [*roles.unsure, *unsure]
    proposal = Proposal(f"{toml.heading(found, unsure)}\n{text}\n{rest}", found, unsure)
    check(proposal.text, base)
    return proposal


def _found(store: OfflineStore, kinds: Kinds, roles: Roles) -> list[str]:
    """What the source holds, in lines."""
    summary = store.summary
    types = text_list(f"{name} {number:,}" for name, number in kinds.counts.items())
    span = f"{utc_date(summary.start)} to {utc_date(summary.end)}"
    return [
        *(f"{role} is {words}" for role, words in roles.words.items()),
        f"{summary.events:,} events of {summary.customers:,} customers, {span}",
        f"types of events: {types}",
        f"purchase: {kinds.purchase}, view: {kinds.view or 'none'}, cart: {kinds.cart or 'none'}",
        *(f"{number:,} rows are left out {reason}" for reason, number in summary.left_out.items()),
    ]


def check(text: str, base: Path) -> TrainingConfig:
    """The proposed config, parsed as any other; InputError says what is wrong with it."""
    return parse_config(TrainingConfig, tomllib.loads(text), base / "proposed.toml")


def events_sql(given: Given, roles: Roles) -> str:
    """Canonical events as SQL."""
    lines = ",\n    ".join(selected(_escaped(column), role) for role, column in roles.sql.items())
    return f"SELECT\n    {lines}\nFROM {given.sql}"


def attributes_sql(connection: duckdb.DuckDBPyConnection, given: Given, roles: Roles) -> str:
    """Attributes as SQL, under names that features may have."""
    ids = [name for name in given.columns if plain(name) in NAMES["customer_id"]]
    same = [name for name in given.columns if roles.words["customer_id"].split(" (")[0] == name]
    if not ids and not same:
        raise InputError(
            f"--attributes: no column looks like the customer's id (there are {text_list(given.columns)}): give a "
            "SELECT that names one AS customer_id"
        )
    customer = (same or sorted(ids, key=lambda name: NAMES["customer_id"].index(plain(name))))[0]
    lines, names = [selected(_whole(given, customer), "customer_id")], {"customer_id"}
    for name, kind in given.columns.items():
        if name == customer:
            continue
        if time_form(connection, given.table, name, kind) is not None:
            roles.unsure.append(f"attribute '{name}' is a time and not selected: make it a number, such as days before")
            continue
        lines.append(selected(_escaped(identifier(name)), identifier(snake(name, names))))
    return "SELECT\n    " + ",\n    ".join(lines) + f"\nFROM {given.sql}"


def find_kinds(connection: duckdb.DuckDBPyConnection, given: Given, roles: Roles) -> Kinds:
    """Types of events by name; the purchase also by which type has amounts.

    Where nothing tells types apart all events are purchases, and where there are no amounts each purchase counts 1.
    """
    kind, amount = roles.sql.get("event_type"), roles.sql.get("amount", "NULL")
    if kind is None:
        kind = roles.sql["event_type"] = f"'{PURCHASE}'"
        roles.words["event_type"] = f"always '{PURCHASE}'"
        if amount == "NULL":
            roles.unsure.append("nothing tells types of events apart, and there are no amounts: is each a purchase?")
    rows = connection.execute(
        f"SELECT {kind} AS kind, count(*) AS n, count({amount}) / n FROM {given.table} WHERE kind IS NOT NULL "
        "GROUP BY kind ORDER BY n DESC, kind"
    ).fetchall()
    if not rows:
        raise InputError("the table has no rows with a type of event: give one that has")
    kinds = _kinds(rows, roles)
    if amount == "NULL":
        roles.sql["amount"] = "1" if len(rows) == 1 else f"CASE {kind} WHEN {literal(kinds.purchase)} THEN 1 END"
        roles.words["amount"] = f"1 for each '{kinds.purchase}'"
        roles.unsure.append("there are no amounts: value is a number of purchases, and so are the costs of offers")
    return kinds


def _kinds(rows: Sequence[tuple[str, int, float]], roles: Roles) -> Kinds:
    """From types with their numbers, the most frequent first, and the shares of them that have an amount."""
    counts = {name: number for name, number, _ in rows}
    purchase = named(list(counts), BUYING)
    if purchase is None:
        with_amounts = [name for name, _, share in rows if share > 0.5]  # noqa: PLR2004 - most of them
        purchase = with_amounts[0] if len(with_amounts) == 1 else rows[-1][0]
        why = "it alone has amounts" if len(with_amounts) == 1 else "it is the rarest"
        if len(counts) > 1:
            roles.unsure.append(f"no type is named like a purchase: '{purchase}' is taken, as {why}")
    others = [name for name in counts if name != purchase]
    return Kinds(counts, purchase, named(others, VIEWING), named(others, CARTING))


def named(kinds: Sequence[str], words: Sequence[str]) -> str | None:
    """The first of some types that is named by a word, whole names before parts of them."""
    for word in words:
        for kind in kinds:
            if plain(kind) in (word, f"{word}s"):
                return kind
    return next((kind for word in words for kind in kinds if word in parts(kind)), None)


def _rest(store: OfflineStore, kinds: Kinds, roles: Roles) -> tuple[str, list[str]]:
    """All sections after the source, and what is unsure about them."""
    unsure = []
    typical = store.connection.execute(
        "SELECT median(amount) FROM events WHERE event_type = $purchase AND amount > 0", {"purchase": kinds.purchase}
    ).fetchall()[0][0]
    if not typical:
        unsure.append(f"events of type '{kinds.purchase}' have no amounts: without any no offer will ever pay")
    counted = roles.words["amount"].startswith("1 for each")
    figures = toml.economics(typical or 1.0, margin=1.0 if counted else 0.25)
    config: dict[str, Any] = {
        "source": {"events": "SELECT 1"},
        "candidates": {},
        "economics": {"event": kinds.purchase, **figures},
    }
    rhythm, days, why = _churn(store, kinds, config)
    if why:
        unsure.append(why)
    if days.short:
        unsure.append(f"the history is too short to fit anything: {days.short}")
    text = toml.section(
        "churn",
        {"event": rhythm.event, **days.sections()["churn"]},
        _rhythm_words(rhythm),
    )
    text += "\n" + toml.section("propensity", {"event": kinds.purchase, **days.sections()["propensity"]})
    text += "\n" + toml.section("evaluation", days.sections()["evaluation"], "cut-offs that fit the history")
    assumption = f"the data knows no margins and no costs; these follow from a median amount of {typical or 1:,.4g}"
    said = {"event": kinds.purchase, **days.sections()["economics"]}
    text += "\n" + toml.economics_sections(Economics.model_validate(config["economics"]), said, assumption)
    text += "\n" + toml.section("candidates", {"half_lives_days": days.half_lives}, "training chooses among them")
    if kinds.view is not None and "item_id" in roles.sql:
        text += "\n" + toml.section("interests", {"view": kinds.view, "purchase": kinds.purchase})
    return text, unsure


def _churn(store: OfflineStore, kinds: Kinds, config: dict[str, Any]) -> tuple[Rhythm, Plan, str]:
    """What churn is seen by: not buying, or not coming back where people hardly buy twice; and why, if that is so."""
    start, end = store.summary.start, store.summary.end
    buying = measure(store.connection, kinds.purchase)
    days = plan(config, buying, start, end)
    if (buying.is_habit and not days.short and days.churn >= (buying.gap_days or 0)) or kinds.view is None:
        why = "" if buying.is_habit else f"few customers have a second '{kinds.purchase}': churn is a weak notion here"
        if buying.is_habit and days.churn < (buying.gap_days or 0):
            why = f"customers come back after {buying.gap_days:.0f} days, longer than the history lets churn look ahead"
        return buying, days, why
    viewing = measure(store.connection, kinds.view)
    why = f"'{kinds.purchase}' is too rare to see churn by it: it is not having a '{kinds.view}' instead"
    days = plan(config, viewing, start, end)
    return viewing, replace(days, propensity=days.churn), why


def _rhythm_words(rhythm: Rhythm) -> str:
    if rhythm.gap_days is None:
        return "nobody comes back in these data: a guess"
    return (
        f"{rhythm.repeaters / rhythm.customers:.0%} of {rhythm.customers:,} customers come back, after "
        f"{rhythm.gap_days:.3g} days in the median"
    )


def _escaped(column: str) -> str:
    """SQL as a config says it, where a dollar begins the name of a folder."""
    return column.replace("$", "$$")


def _whole(given: Given, name: str) -> str:
    column = _escaped(identifier(name))
    return f"{column}::BIGINT" if given.columns[name] in ("DOUBLE", "FLOAT") else column
