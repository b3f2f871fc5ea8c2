"""Mapping a shop's columns to the canonical columns of events, by their names and their content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import duckdb

from feature_store.errors import InputError
from feature_store.sql import identifier
from training.audit.ids import SHORTENED
from training.data.columns import is_number, is_text, text_list
from training.scaffold.formats import ColumnFormat, number_format, time_format
from training.scaffold.synonyms import BUYING, CARTING, NAMES, QUANTITY, VIEWING, candidates, is_named, parts, plain
from training.scaffold.tables import InputTable

MAX_TYPES: Final = 200
MAX_CHANNELS: Final = 64
UNIT_S: Final = {"ms": " / 1e3", "milliseconds": " / 1e3", "minutes": " * 60", "min": " * 60"}


@dataclass(frozen=True)
class ColumnRoles:
    """Canonical columns found in a table.

    Attributes:
        sql: SQL expression by canonical column.
        words: Where each comes from, as text.
        unsure: Guesses that a person should check, one line each.
    """

    sql: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)

    def assign(self, role: str, form: ColumnFormat, column: str) -> None:
        """Use a column, in the format that was recognised, for a role."""
        self.sql[role] = form.sql
        self.words[role] = f"{column} ({form.words})" if form.words else column
        if form.unsure:
            self.unsure.append(f"{role} from '{column}': {form.unsure}")


def find_roles(connection: duckdb.DuckDBPyConnection, table: InputTable) -> ColumnRoles:
    """Find the canonical columns in a table of events.

    Raises:
        InputError: If no column can be the customer or the time.
    """
    roles, taken = ColumnRoles(), set[str]()
    finders: dict[str, Callable[[_TableColumns, str], ColumnFormat | None]] = {
        "event_time": _TableColumns.time,
        "customer_id": _TableColumns.customer,
        "event_type": _TableColumns.type,
        "amount": _TableColumns.amount,
        "duration_s": _TableColumns.duration,
        "item_id": _TableColumns.id,
        "event_id": _TableColumns.event_id,
        "channel": _TableColumns.channel,
        "text": _TableColumns.free_text,
    }
    finder = _TableColumns(connection, table, roles)
    for role, find in finders.items():
        named = candidates(role, table.columns, taken)
        others = [name for name in table.columns if name not in taken and name not in named]
        for name in named + (others if role in ("event_time", "customer_id", "event_type") else []):
            if role == "event_type" and name in others and not finder.holds_purchases(name):
                continue
            form = find(finder, name)
            if form is not None:
                roles.assign(role, form, name)
                taken.add(name)
                if name in others:
                    roles.unsure.append(f"{role} from '{name}': its content looks right, its name does not")
                break
    for role in ("customer_id", "event_time"):
        if role not in roles.sql:
            raise InputError(
                f"no column can be used as {role} (there are {text_list(table.columns)}): give a SELECT that names "
                f"one AS {role}"
            )
    return roles


@dataclass(frozen=True)
class _TableColumns:
    """Looks at the content of a table's columns: each method returns how to read a column in a role, or None."""

    connection: duckdb.DuckDBPyConnection
    table: InputTable
    roles: ColumnRoles

    def ask(self, sql: str) -> tuple[float, ...]:
        """Compute aggregates, one row."""
        return self.connection.execute(f"SELECT {sql} FROM {self.table.name}").fetchall()[0]

    def time(self, name: str) -> ColumnFormat | None:
        return time_format(self.connection, self.table.name, name, self.table.columns[name])

    def id(self, name: str) -> ColumnFormat | None:
        """An id as it is written; ids read as DOUBLE because some are missing become whole numbers again."""
        kind, column = self.table.columns[name], identifier(name)
        if kind in ("DOUBLE", "FLOAT"):
            whole = self.ask(f"coalesce(bool_and({column} = floor({column})), false)")[0]
            return ColumnFormat(f"{column}::BIGINT", "whole numbers") if whole else None
        usable = is_text(kind) or kind == "UUID" or (is_number(kind) and kind != "BOOLEAN" and "DECIMAL" not in kind)
        return ColumnFormat(column, "") if usable else None

    def customer(self, name: str) -> ColumnFormat | None:
        form = self.id(name)
        if form is None:
            return None
        rows, values = self.ask(f"count({identifier(name)}), count(DISTINCT {identifier(name)})")
        if values < 2:  # noqa: PLR2004 - a constant is no id
            return None
        if plain(name) not in NAMES["customer_id"]:
            return form if values > MAX_TYPES and values < rows / 2 else None
        if is_text(self.table.columns[name]) and self.ask(f"bool_or(regexp_matches({form.sql}, '{SHORTENED}'))")[0]:
            unsure = "a spreadsheet has shortened long ids (1.20E+11), so that several customers may have become one"
            return ColumnFormat(form.sql, form.words, unsure)
        if values == rows:
            unsure = "every row has another customer: use --snapshot for a table with one row per customer"
            return ColumnFormat(form.sql, form.words, unsure)
        return form

    def type(self, name: str) -> ColumnFormat | None:
        values = self.ask(f"count(DISTINCT {identifier(name)})")[0]
        if not 1 <= values <= MAX_TYPES or self.table.columns[name] in ("DOUBLE", "FLOAT", "BOOLEAN"):
            return None
        if is_text(self.table.columns[name]):
            return ColumnFormat(identifier(name), "")
        return ColumnFormat(f"{identifier(name)}::VARCHAR", "codes", "look up which code stands for which event")

    def holds_purchases(self, name: str) -> bool:
        """Whether a text column has both purchases and views or carts, so that it is an event type."""
        if not is_text(self.table.columns[name]) or self.type(name) is None:
            return False
        rows = self.connection.execute(f"SELECT DISTINCT {identifier(name)} FROM {self.table.name}").fetchall()
        values = [str(value) for (value,) in rows]
        return any(plain(value) in BUYING for value in values) and any(
            is_named(value, VIEWING + CARTING) for value in values
        )

    def amount(self, name: str) -> ColumnFormat | None:
        form = number_format(self.connection, self.table.name, name, self.table.columns[name])
        if form is None or self.table.columns[name] == "BOOLEAN":
            return None
        quantity = next((other for other in self.table.columns if plain(other) in QUANTITY), None)
        if plain(name) in ("price", "unitprice", "itemprice") and quantity is not None:
            count = number_format(self.connection, self.table.name, quantity, self.table.columns[quantity])
            if count is not None:
                unsure = f"taken as the unit price, multiplied by '{quantity}'"
                return ColumnFormat(f"{count.sql} * {form.sql}", f"times {quantity}", unsure)
        return form

    def duration(self, name: str) -> ColumnFormat | None:
        form = number_format(self.connection, self.table.name, name, self.table.columns[name])
        if form is None:
            return None
        unit = next((factor for part, factor in UNIT_S.items() if part in parts(name)), "")
        return ColumnFormat(
            form.sql + unit, form.words, "" if unit or plain(name) != "duration" else "taken as seconds"
        )

    def event_id(self, name: str) -> ColumnFormat | None:
        form = self.id(name)
        rows, values = self.ask(f"count({identifier(name)}), count(DISTINCT {identifier(name)})")
        if form is None or not rows:
            return None
        if values < rows:
            self.roles.unsure.append(
                f"'{name}' is on several rows, so it is not used as event_id: if rows are lines of an order, sum them "
                "up in SQL"
            )
            return None
        return form

    def channel(self, name: str) -> ColumnFormat | None:
        few = is_text(self.table.columns[name]) and self.ask(f"count(DISTINCT {identifier(name)})")[0] <= MAX_CHANNELS
        return ColumnFormat(identifier(name), "") if few else None

    def free_text(self, name: str) -> ColumnFormat | None:
        return ColumnFormat(identifier(name), "") if is_text(self.table.columns[name]) else None
