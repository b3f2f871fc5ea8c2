"""Which column of a shop's table is which canonical one, by its name and by what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import duckdb

from feature_store.errors import InputError
from feature_store.sql import identifier
from training.audit.columns import is_number, is_text, text_list
from training.scaffold.formats import Form, number_form, time_form
from training.scaffold.synonyms import BUYING, CARTING, NAMES, QUANTITY, VIEWING, candidates, is_named, parts, plain
from training.scaffold.tables import Given

MOST_TYPES: Final = 200
MOST_CHANNELS: Final = 64
UNIT_S: Final = {"ms": " / 1e3", "milliseconds": " / 1e3", "minutes": " * 60", "min": " * 60"}


@dataclass(frozen=True)
class Roles:
    """Canonical columns as SQL, where each comes from in words, and what is unsure."""

    sql: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)

    def take(self, role: str, form: Form, column: str) -> None:
        """A column takes a role."""
        self.sql[role] = form.sql
        self.words[role] = f"{column} ({form.words})" if form.words else column
        if form.unsure:
            self.unsure.append(f"{role} from '{column}': {form.unsure}")


def find_roles(connection: duckdb.DuckDBPyConnection, given: Given) -> Roles:
    """The canonical columns of a table of events; InputError where there is no customer or no time."""
    roles, taken = Roles(), set[str]()
    finders: dict[str, Callable[[_Table, str], Form | None]] = {
        "event_time": _Table.time,
        "customer_id": _Table.customer,
        "event_type": _Table.type,
        "amount": _Table.amount,
        "duration_s": _Table.duration,
        "item_id": _Table.id,
        "event_id": _Table.event_id,
        "channel": _Table.channel,
        "text": _Table.free_text,
    }
    table = _Table(connection, given, roles)
    for role, find in finders.items():
        named = candidates(role, given.columns, taken)
        others = [name for name in given.columns if name not in taken and name not in named]
        for name in named + (others if role in ("event_time", "customer_id", "event_type") else []):
            if role == "event_type" and name in others and not table.holds_purchases(name):
                continue
            form = find(table, name)
            if form is not None:
                roles.take(role, form, name)
                taken.add(name)
                if name in others:
                    roles.unsure.append(f"{role} from '{name}': its content looks like it, its name does not")
                break
    for role in ("customer_id", "event_time"):
        if role not in roles.sql:
            raise InputError(
                f"no column can be taken as {role} (there are {text_list(given.columns)}): give a SELECT that names "
                f"one AS {role}"
            )
    return roles


@dataclass(frozen=True)
class _Table:
    """What the columns of a table hold."""

    connection: duckdb.DuckDBPyConnection
    given: Given
    roles: Roles

    def ask(self, sql: str) -> tuple[float, ...]:
        """One row of aggregates."""
        return self.connection.execute(f"SELECT {sql} FROM {self.given.table}").fetchall()[0]

    def time(self, name: str) -> Form | None:
        return time_form(self.connection, self.given.table, name, self.given.columns[name])

    def id(self, name: str) -> Form | None:
        """An id as it is written; one that became a fraction, as numbers with gaps do, is made whole again."""
        kind, column = self.given.columns[name], identifier(name)
        if kind in ("DOUBLE", "FLOAT"):
            whole = self.ask(f"coalesce(bool_and({column} = floor({column})), false)")[0]
            return Form(f"{column}::BIGINT", "whole numbers") if whole else None
        usable = is_text(kind) or kind == "UUID" or (is_number(kind) and kind != "BOOLEAN" and "DECIMAL" not in kind)
        return Form(column, "") if usable else None

    def customer(self, name: str) -> Form | None:
        form = self.id(name)
        if form is None:
            return None
        rows, values = self.ask(f"count({identifier(name)}), count(DISTINCT {identifier(name)})")
        if values < 2:  # noqa: PLR2004 - one value is nobody's id
            return None
        if plain(name) not in NAMES["customer_id"]:
            return form if values > MOST_TYPES and values < rows / 2 else None
        if values == rows:
            unsure = "every row has one of its own: for a table with one row per customer there is --snapshot"
            return Form(form.sql, form.words, unsure)
        return form

    def type(self, name: str) -> Form | None:
        values = self.ask(f"count(DISTINCT {identifier(name)})")[0]
        if not 1 <= values <= MOST_TYPES or self.given.columns[name] in ("DOUBLE", "FLOAT", "BOOLEAN"):
            return None
        if is_text(self.given.columns[name]):
            return Form(identifier(name), "")
        return Form(f"{identifier(name)}::VARCHAR", "codes", "look up which code stands for which event")

    def holds_purchases(self, name: str) -> bool:
        """Whether a column of texts names purchases and something else, so that it tells types apart."""
        if not is_text(self.given.columns[name]) or self.type(name) is None:
            return False
        rows = self.connection.execute(f"SELECT DISTINCT {identifier(name)} FROM {self.given.table}").fetchall()
        values = [str(value) for (value,) in rows]
        return any(plain(value) in BUYING for value in values) and any(
            is_named(value, VIEWING + CARTING) for value in values
        )

    def amount(self, name: str) -> Form | None:
        form = number_form(self.connection, self.given.table, name, self.given.columns[name])
        if form is None or self.given.columns[name] == "BOOLEAN":
            return None
        quantity = next((other for other in self.given.columns if plain(other) in QUANTITY), None)
        if plain(name) in ("price", "unitprice", "itemprice") and quantity is not None:
            count = number_form(self.connection, self.given.table, quantity, self.given.columns[quantity])
            if count is not None:
                unsure = f"taken as the price of one, times '{quantity}'"
                return Form(f"{count.sql} * {form.sql}", f"times {quantity}", unsure)
        return form

    def duration(self, name: str) -> Form | None:
        form = number_form(self.connection, self.given.table, name, self.given.columns[name])
        if form is None:
            return None
        unit = next((factor for part, factor in UNIT_S.items() if part in parts(name)), "")
        return Form(form.sql + unit, form.words, "" if unit or plain(name) != "duration" else "taken as seconds")

    def event_id(self, name: str) -> Form | None:
        form = self.id(name)
        rows, values = self.ask(f"count({identifier(name)}), count(DISTINCT {identifier(name)})")
        if form is None or not rows:
            return None
        if values < rows:
            self.roles.unsure.append(
                f"'{name}' is on several rows, so it is no event_id: if rows are lines of an order, sum them up in SQL"
            )
            return None
        return form

    def channel(self, name: str) -> Form | None:
        few = is_text(self.given.columns[name]) and self.ask(f"count(DISTINCT {identifier(name)})")[0] <= MOST_CHANNELS
        return Form(identifier(name), "") if few else None

    def free_text(self, name: str) -> Form | None:
        return Form(identifier(name), "") if is_text(self.given.columns[name]) else None
