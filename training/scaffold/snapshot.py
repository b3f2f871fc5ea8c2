"""A first config for a table with one row per customer and a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import duckdb

from feature_store.config import Snapshot, Source
from feature_store.errors import InputError
from feature_store.offline.source import read_attributes
from feature_store.sql import identifier
from training.audit.columns import columns_of, is_number, is_text, text_list
from training.audit.snapshot import audit_snapshot
from training.config import Economics
from training.scaffold import toml_text as toml
from training.scaffold.events import Proposal, check
from training.scaffold.formats import number_form, time_form
from training.scaffold.synonyms import NAMES, plain, selected, snake
from training.scaffold.tables import Given, read_given

CHURN: Final = ("churn", "churned", "ischurn", "churnflag", "churnvalue", "churnlabel", "exited", "attrition")
CHURN_TOO: Final = ("attrited", "attritionflag", "left", "cancelled", "canceled", "lost")
BUYS: Final = ("revenue", "converted", "conversion", "purchased", "purchase", "bought", "buyer", "ordered")
BUYS_TOO: Final = ("response", "responded", "subscribed", "visit", "visited", "clicked")
ANYTHING: Final = ("label", "target", "class", "outcome", "y")
LABELS: Final = CHURN + CHURN_TOO + BUYS + BUYS_TOO + ANYTHING
"""Usual names of labels, the most telling first."""

VALUES: Final = ("clv", "ltv", "cltv", "customervalue", "customerlifetimevalue")
VALUES_TOO: Final = ("futurevalue", "futurespend", "spend", "value")

CONTACT_COSTS: Final = ("contactcost", "costofcontact", "callcost", "mailcost")
OFFER_COSTS: Final = ("offercost", "giftcost", "couponcost", "vouchercost", "incentivecost")
COSTS: Final = {"contact_cost": CONTACT_COSTS, "offer_cost": OFFER_COSTS}
GROUPS: Final = ("household", "householdid", "householdkey", "family", "familyid", "accountid", "companyid")

ONES: Final = (
    "1",
    "yes",
    "y",
    "true",
    "t",
    "churn",
    "churned",
    "left",
    "lost",
    "exited",
    "attrited",
    "attritedcustomer",
)
ONES_TOO: Final = ("bought", "buyer", "converted", "purchased", "subscribed")

LEFT_OUT_BY: Final = ("leak", "id column")
"""Checks of the audit whose columns are proposed to be left out."""

PLACEHOLDER_VALUE: Final = 100.0


@dataclass(frozen=True)
class Label:
    """A label's column, SQL that makes it 0 or 1, and what is unsure."""

    column: str
    sql: str
    unsure: str = ""


@dataclass(frozen=True)
class Draft:
    """What a snapshot's section says: SQL, folders, columns, and new names of columns by the old ones."""

    query: str
    paths: dict[str, str]
    names: dict[str, str]
    label: str
    target: str
    value: str | None = None
    contact_cost: str | None = None
    offer_cost: str | None = None
    group: str | None = None
    leave_out: tuple[str, ...] = ()

    def section(self) -> dict[str, object]:
        """The keys besides SQL and folders."""
        keys = ("label", "target", "value", "contact_cost", "offer_cost", "group")
        said = {key: getattr(self, key) for key in keys} | {"leave_out": list(self.leave_out)}
        return {key: given for key, given in said.items() if given}


def propose_snapshot(table: str, label: str | None, base: Path) -> Proposal:
    """A config for a snapshot, a file or SQL; ``label``: its column, None to look for it.

    InputError where the table cannot be read, or nothing can be taken as a label.
    """
    unsure: list[str] = []
    draft, found = _draft(table, label, base, unsure)
    source = Source.model_validate({"attributes": draft.query, "paths": draft.paths})
    source.relative_to(base)
    with duckdb.connect() as connection:
        read_attributes(connection, source)
        draft = _with_columns(connection, draft, unsure)
        draft = replace(draft, leave_out=tuple(find_left_out(connection, draft, unsure)))
        rows, typical = _size(connection, draft)
    found = [f"{rows:,} customers, {len(draft.names)} columns besides the id", *found]
    found += [f"left out: {name}" for name in draft.leave_out]
    text = toml.source("snapshot", {"table": draft.query}, draft.paths, draft.section())
    said = {} if draft.value else {"value": PLACEHOLDER_VALUE}
    worth = (
        "follow from what is usual among the values"
        if typical
        else f"take every customer to spend {PLACEHOLDER_VALUE:g}"
    )
    figures = Economics.model_validate(toml.economics(typical or PLACEHOLDER_VALUE, margin=0.25))
    assumption = f"the data knows no margins and no costs; these {worth}"
    text += "\n" + toml.economics_sections(figures, said, assumption, [draft.target])
    proposal = Proposal(f"{toml.heading(found, unsure)}\n{text}", found, unsure)
    with duckdb.connect() as connection:
        read_attributes(connection, check(proposal.text, base).source)
    return proposal


def _draft(table: str, label: str | None, base: Path, unsure: list[str]) -> tuple[Draft, list[str]]:
    """What can be said from names alone, and lines that say it."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        given = read_given(connection, table, base, "data")
        chosen = find_label(connection, given, label)
        customer = find_customer(connection, given, unsure)
        query, names = snapshot_sql(connection, given, chosen, customer, unsure)
    target = "propensity" if plain(chosen.column) in BUYS + BUYS_TOO else "churn"
    if chosen.unsure:
        unsure.append(chosen.unsure)
    if plain(chosen.column) not in CHURN + CHURN_TOO + BUYS + BUYS_TOO:
        unsure.append(f"'{chosen.column}' may stand for leaving or for buying: target = \"{target}\" is a guess")
    found = [f"customer_id is {customer or 'the number of the row'}", f"label is {chosen.column}, for {target}"]
    return Draft(query, given.paths, names, names[chosen.column], target), found


def _with_columns(connection: duckdb.DuckDBPyConnection, draft: Draft, unsure: list[str]) -> Draft:
    """The draft with the columns that have a meaning of their own, by their names."""
    kinds = columns_of(connection)
    numbers = [name for name in draft.names.values() if is_number(kinds[name])]
    value = _named(draft, VALUES + VALUES_TOO, numbers)
    if value is not None:
        unsure.append(f"'{value}' is taken as what a customer will spend, which is not learnt from")
    costs = {key: _named(draft, words, numbers) for key, words in COSTS.items()}
    unsure += [f"'{name}' is taken as each customer's own {key}" for key, name in costs.items() if name is not None]
    group = _named(draft, GROUPS, list(draft.names.values()))
    if group is not None:
        unsure.append(f"rows of one '{group}' stay together, and it is not learnt from")
    return replace(draft, value=value, contact_cost=costs["contact_cost"], offer_cost=costs["offer_cost"], group=group)


def _named(draft: Draft, words: Sequence[str], usable: Sequence[str]) -> str | None:
    """The first of the usable columns that is named by a word."""
    named = [new for word in words for old, new in draft.names.items() if plain(old) == word]
    return next((name for name in named if name != draft.label and name in usable), None)


def _size(connection: duckdb.DuckDBPyConnection, draft: Draft) -> tuple[int, float | None]:
    """How many customers there are, and their usual value: the median, or the mean where most are worth nothing."""
    value = "NULL" if draft.value is None else identifier(draft.value)
    query = f"SELECT count(*), median({value}::DOUBLE), avg({value}::DOUBLE) FROM attributes"
    rows, median, mean = connection.execute(query).fetchall()[0]
    return rows, next((found for found in (median, mean) if found is not None and found > 0), None)


def find_label(connection: duckdb.DuckDBPyConnection, given: Given, name: str | None) -> Label:
    """The column that says what became of a customer."""
    if name is not None:
        found = next((column for column in given.columns if column.lower() == name.lower()), None)
        if found is None:
            raise InputError(f"--label: there is no column '{name}', there are {text_list(given.columns)}")
        label = binary(connection, given, found)
        if label is None:
            raise InputError(f"--label: column '{found}' has not two values: give a SELECT that makes it 0 or 1")
        return label
    for word in LABELS:
        for column in given.columns:
            if plain(column) == word and (label := binary(connection, given, column)) is not None:
                return label
    two = [column for column in given.columns if binary(connection, given, column) is not None]
    raise InputError(f"no column of two values is named like a label (there are {text_list(two)}): say --label COLUMN")


def binary(connection: duckdb.DuckDBPyConnection, given: Given, name: str) -> Label | None:
    """How a column of two values is made 0 or 1, None if it is no such column."""
    column, kind = identifier(name), given.columns[name]
    found = connection.execute(
        f"SELECT {column}::VARCHAR, count(*) AS n FROM {given.table} WHERE {column} IS NOT NULL GROUP BY 1 "
        "ORDER BY n, 1 LIMIT 3"
    ).fetchall()
    values = [value for value, _ in found]
    if len(values) != 2:  # noqa: PLR2004 - a label has two values
        return None
    if kind == "BOOLEAN":
        return Label(name, f"{column}::INTEGER")
    if is_number(kind):
        return Label(name, column) if {float(value) for value in values} == {0.0, 1.0} else None
    ones = [value for value in values if plain(value) in ONES + ONES_TOO]
    one = ones[0] if len(ones) == 1 else values[0]
    sql = f"({column} = '{one.replace(chr(39), chr(39) * 2)}')::INTEGER"
    return Label(name, sql, "" if len(ones) == 1 else f"the rarer value of '{name}' is taken as 1")


def find_customer(connection: duckdb.DuckDBPyConnection, given: Given, unsure: list[str]) -> str | None:
    """The column that names the customer, None where there is none."""
    for word in NAMES["customer_id"] + ("id", "rownumber", "index"):
        for column in given.columns:
            if plain(column) == word:
                rows, values = connection.execute(
                    f"SELECT count(*), count(DISTINCT {identifier(column)}) FROM {given.table}"
                ).fetchall()[0]
                if rows == values:
                    return column
                unsure.append(f"'{column}' repeats or is missing, so it is no customer_id here")
    unsure.append("no column names the customer: rows are numbered, which does to try models out and not to serve them")
    return None


def snapshot_sql(
    connection: duckdb.DuckDBPyConnection, given: Given, label: Label, customer: str | None, unsure: list[str]
) -> tuple[str, dict[str, str]]:
    """The table as SQL, and the new names of its columns by the old ones."""
    number = "row_number() OVER ()" if customer is None else identifier(customer)
    taken, names = {"customer_id"}, dict[str, str]()
    lines = [selected(number.replace("$", "$$"), "customer_id")]
    for name, kind in given.columns.items():
        if name == customer:
            continue
        if not is_number(kind) and time_form(connection, given.table, name, kind) is not None:
            unsure.append(f"'{name}' is a time and not selected: make it a number, such as days before the label")
            continue
        form = number_form(connection, given.table, name, kind) if is_text(kind) else None
        sql = label.sql if name == label.column else identifier(name) if form is None else form.sql
        names[name] = snake(name, taken)
        lines.append(selected(sql.replace("$", "$$"), identifier(names[name])))
    return "SELECT\n    " + ",\n    ".join(lines) + f"\nFROM {given.sql}", names


def find_left_out(connection: duckdb.DuckDBPyConnection, draft: Draft, unsure: list[str]) -> list[str]:
    """Columns not to learn from: other outcomes by name, ids, and what tells the label by itself."""
    left_out = []
    for old, new in draft.names.items():
        if new not in (draft.label, draft.value) and plain(old) in CHURN + CHURN_TOO + BUYS + BUYS_TOO:
            left_out.append(new)
            unsure.append(f"'{new}' is left out, as it is named like an outcome itself")
    snapshot = Snapshot.model_validate({"table": draft.query, **draft.section(), "leave_out": left_out})
    for finding in audit_snapshot(snapshot, connection):
        name = finding.where.removeprefix("snapshot.")
        if finding.check in LEFT_OUT_BY and name not in left_out:
            left_out.append(name)
            unsure.append(f"'{name}' is left out: {finding.message}")
        elif finding.severity == "fatal":
            unsure.append(f"nothing can be fitted yet: {finding.message}")
    return left_out
