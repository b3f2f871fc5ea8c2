"""Scaffolding a config for a snapshot: a table with one row per customer and a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import duckdb

from feature_store.config import Snapshot, Source
from feature_store.errors import InputError
from feature_store.offline.source import read_attributes
from feature_store.sandbox import connect
from feature_store.sql import identifier
from training.audit.snapshot import audit_snapshot
from training.config import Economics
from training.data.columns import columns_of, is_number, is_text, text_list
from training.scaffold import toml_text
from training.scaffold.events import Scaffold, check
from training.scaffold.formats import number_format, time_format
from training.scaffold.synonyms import NAMES, plain, selected, snake
from training.scaffold.tables import InputTable, connect_to, read_table

CHURN: Final = ("churn", "churned", "ischurn", "churnflag", "churnvalue", "churnlabel", "exited", "attrition")
CHURN_TOO: Final = ("attrited", "attritionflag", "left", "cancelled", "canceled", "lost")
BUYS: Final = ("revenue", "converted", "conversion", "purchased", "purchase", "bought", "buyer", "ordered")
BUYS_TOO: Final = ("response", "responded", "subscribed", "visit", "visited", "clicked")
ANYTHING: Final = ("label", "target", "class", "outcome", "y")
LABELS: Final = CHURN + CHURN_TOO + BUYS + BUYS_TOO + ANYTHING
"""Usual names of labels, the most specific first."""

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
"""Checks of the audit that lead to a column being left out."""

PLACEHOLDER_VALUE: Final = 100.0


@dataclass(frozen=True)
class Label:
    """The label: its column, SQL that makes it 0 or 1, and the guess in it that a person should check."""

    column: str
    sql: str
    unsure: str = ""


@dataclass(frozen=True)
class Draft:
    """The section ``[snapshot]`` as far as it is known; ``names`` maps original column names to those in the SQL."""

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
        """The keys of the section except the SQL and the folders."""
        keys = ("label", "target", "value", "contact_cost", "offer_cost", "group")
        values = {key: getattr(self, key) for key in keys} | {"leave_out": list(self.leave_out)}
        return {key: value for key, value in values.items() if value}


def scaffold_snapshot(source: str, label: str | None, base: Path) -> Scaffold:
    """Generate a config for a snapshot.

    Args:
        source: A file, or SQL.
        label: The label's column; None to look for one.
        base: The folder that the config will be in; its paths are relative to it.

    Returns:
        The config, which has been parsed as a check.

    Raises:
        InputError: If the table cannot be read, or no column can be the label.
    """
    unsure: list[str] = []
    draft, facts = _draft(source, label, base, unsure)
    parsed = Source.model_validate({"attributes": draft.query, "paths": draft.paths})
    parsed.relative_to(base)
    with connect(parsed.folders, parsed.queries) as connection:
        read_attributes(connection, parsed)
        draft = _with_columns(connection, draft, unsure)
        draft = replace(draft, leave_out=tuple(find_left_out(connection, draft, unsure)))
        rows, typical = _size(connection, draft)
    facts = [f"{rows:,} customers, {len(draft.names)} columns besides the id", *facts]
    facts += [f"left out: {name}" for name in draft.leave_out]
    text = toml_text.source("snapshot", {"table": draft.query}, draft.paths, draft.section())
    keys = {} if draft.value else {"value": PLACEHOLDER_VALUE}
    worth = "are scaled to a typical value" if typical else f"assume that every customer spends {PLACEHOLDER_VALUE:g}"
    figures = Economics.model_validate(toml_text.economics(typical or PLACEHOLDER_VALUE, margin=0.25))
    assumption = f"the data has no margins or costs; these {worth}"
    text += "\n" + toml_text.economics_sections(figures, keys, assumption, [draft.target])
    scaffold = Scaffold(f"{toml_text.heading(facts, unsure)}\n{text}", facts, unsure)
    checked = check(scaffold.text, base).source
    with connect(checked.folders, checked.queries) as connection:
        read_attributes(connection, checked)
    return scaffold


def _draft(source: str, label: str | None, base: Path, unsure: list[str]) -> tuple[Draft, list[str]]:
    """What follows from the names of the columns alone, and facts about it, one line each."""
    with connect_to(source) as connection:
        table = read_table(connection, source, base, "data")
        chosen = find_label(connection, table, label)
        customer = find_customer(connection, table, unsure)
        query, names = snapshot_sql(connection, table, chosen, customer, unsure)
    target = "propensity" if plain(chosen.column) in BUYS + BUYS_TOO else "churn"
    if chosen.unsure:
        unsure.append(chosen.unsure)
    if plain(chosen.column) not in CHURN + CHURN_TOO + BUYS + BUYS_TOO:
        unsure.append(f"'{chosen.column}' may mean leaving or buying: target = \"{target}\" is a guess")
    facts = [f"customer_id is {customer or 'the row number'}", f"label is {chosen.column}, for {target}"]
    return Draft(query, table.paths, names, names[chosen.column], target), facts


def _with_columns(connection: duckdb.DuckDBPyConnection, draft: Draft, unsure: list[str]) -> Draft:
    """Add the columns with a special role (value, costs, group), by their names."""
    types = columns_of(connection)
    numbers = [name for name in draft.names.values() if is_number(types[name])]
    value = _named(draft, VALUES + VALUES_TOO, numbers)
    if value is not None:
        unsure.append(f"'{value}' is taken as what a customer will spend, so it is not a feature")
    costs = {key: _named(draft, words, numbers) for key, words in COSTS.items()}
    unsure += [f"'{name}' is taken as the {key} of each customer" for key, name in costs.items() if name is not None]
    group = _named(draft, GROUPS, list(draft.names.values()))
    if group is not None:
        unsure.append(f"rows of one '{group}' stay together when the data is split; it is not a feature")
    return replace(draft, value=value, contact_cost=costs["contact_cost"], offer_cost=costs["offer_cost"], group=group)


def _named(draft: Draft, words: Sequence[str], usable: Sequence[str]) -> str | None:
    """The first usable column whose name is one of the words."""
    named = [new for word in words for old, new in draft.names.items() if plain(old) == word]
    return next((name for name in named if name != draft.label and name in usable), None)


def _size(connection: duckdb.DuckDBPyConnection, draft: Draft) -> tuple[int, float | None]:
    """Number of customers and their typical value: the median, or the mean if the median is 0."""
    value = "NULL" if draft.value is None else identifier(draft.value)
    query = f"SELECT count(*), median({value}::DOUBLE), avg({value}::DOUBLE) FROM attributes"
    rows, median, mean = connection.execute(query).fetchall()[0]
    return rows, next((value for value in (median, mean) if value is not None and value > 0), None)


def find_label(connection: duckdb.DuckDBPyConnection, table: InputTable, name: str | None) -> Label:
    """The label's column: ``name``, or the first column of two values that is named like a label."""
    if name is not None:
        match = next((column for column in table.columns if column.lower() == name.lower()), None)
        if match is None:
            raise InputError(f"--label: there is no column '{name}', there are {text_list(table.columns)}")
        label = binary(connection, table, match)
        if label is None:
            raise InputError(
                f"--label: column '{match}' does not have exactly two values: give a SELECT that makes it 0 or 1"
            )
        return label
    for word in LABELS:
        for column in table.columns:
            if plain(column) == word and (label := binary(connection, table, column)) is not None:
                return label
    binaries = [column for column in table.columns if binary(connection, table, column) is not None]
    raise InputError(
        f"no column of two values is named like a label (there are {text_list(binaries)}): give --label COLUMN"
    )


def binary(connection: duckdb.DuckDBPyConnection, table: InputTable, name: str) -> Label | None:
    """SQL that makes a column of two values 0 or 1; None if it does not have two values."""
    column, kind = identifier(name), table.columns[name]
    counts = connection.execute(
        f"SELECT {column}::VARCHAR, count(*) AS n FROM {table.name} WHERE {column} IS NOT NULL GROUP BY 1 "
        "ORDER BY n, 1 LIMIT 3"
    ).fetchall()
    values = [value for value, _ in counts]
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


def find_customer(connection: duckdb.DuckDBPyConnection, table: InputTable, unsure: list[str]) -> str | None:
    """The column with the customer's id; None if there is none."""
    for word in NAMES["customer_id"] + ("id", "rownumber", "index"):
        for column in table.columns:
            if plain(column) == word:
                rows, values = connection.execute(
                    f"SELECT count(*), count(DISTINCT {identifier(column)}) FROM {table.name}"
                ).fetchall()[0]
                if rows == values:
                    return column
                unsure.append(f"'{column}' has duplicates or missing values, so it is not used as customer_id")
    unsure.append("no column is a customer id: rows are numbered, which is enough to try models but not to serve them")
    return None


def snapshot_sql(
    connection: duckdb.DuckDBPyConnection, table: InputTable, label: Label, customer: str | None, unsure: list[str]
) -> tuple[str, dict[str, str]]:
    """SQL for the snapshot, and its column names by the original ones."""
    number = "row_number() OVER ()" if customer is None else identifier(customer)
    taken, names = {"customer_id"}, dict[str, str]()
    lines = [selected(number.replace("$", "$$"), "customer_id")]
    for name, kind in table.columns.items():
        if name == customer:
            continue
        if not is_number(kind) and time_format(connection, table.name, name, kind) is not None:
            unsure.append(f"'{name}' is a time and is left out: make it a number in SQL, such as days before the label")
            continue
        form = number_format(connection, table.name, name, kind) if is_text(kind) else None
        sql = label.sql if name == label.column else identifier(name) if form is None else form.sql
        names[name] = snake(name, taken)
        lines.append(selected(sql.replace("$", "$$"), identifier(names[name])))
    return "SELECT\n    " + ",\n    ".join(lines) + f"\nFROM {table.sql}", names


def find_left_out(connection: duckdb.DuckDBPyConnection, draft: Draft, unsure: list[str]) -> list[str]:
    """Columns that must not be features: other outcomes by name, ids, and columns that leak the label."""
    left_out = []
    for old, new in draft.names.items():
        if new not in (draft.label, draft.value) and plain(old) in CHURN + CHURN_TOO + BUYS + BUYS_TOO:
            left_out.append(new)
            unsure.append(f"'{new}' is left out because it is named like an outcome")
    snapshot = Snapshot.model_validate({"table": draft.query, **draft.section(), "leave_out": left_out})
    for finding in audit_snapshot(snapshot, connection):
        name = finding.where.removeprefix("snapshot.")
        if finding.check in LEFT_OUT_BY and name not in left_out:
            left_out.append(name)
            unsure.append(f"'{name}' is left out: {finding.message}")
        elif finding.severity == "fatal":
            unsure.append(f"training cannot run yet: {finding.message}")
    return left_out
