"""What ``init`` makes of columns, types of events, rhythms and names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from feature_store.config import Source
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from training.config import Economics, TrainingConfig
from training.data.cutoffs import lay_out
from training.scaffold import toml_text
from training.scaffold.cadence import Cadence, measure, propose_horizons
from training.scaffold.column_roles import ColumnRoles, find_roles
from training.scaffold.events import check, find_event_types, named, scaffold_events
from training.scaffold.formats import number_format, time_format
from training.scaffold.snapshot import scaffold_snapshot
from training.scaffold.synonyms import BUYING, VIEWING, candidates, parts, snake
from training.scaffold.tables import InputTable, read_table

DAY = 86_400
START = 1_600_000_000.0

OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}
CONFIG: dict[str, Any] = {
    "source": {"events": "SELECT 1"},
    "candidates": {},
    "economics": {"margin": 0.3, "churn": OFFER, "propensity": OFFER},
}


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        opened.execute("SET TimeZone = 'UTC'")
        yield opened


def given(connection: duckdb.DuckDBPyConnection, query: str) -> InputTable:
    connection.execute(f"CREATE OR REPLACE TABLE given AS {query}")
    columns = {row[0]: row[1] for row in connection.execute("DESCRIBE given").fetchall()}
    return InputTable("given", {}, "given", columns)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("19970131", "DATE as yyyymmdd"),
        ("'19970131'", "DATE as yyyymmdd"),
        ("854668800", "unix seconds"),
        ("854668800.0", "unix seconds"),
        ("'854668800'", "unix seconds"),
        ("854668800000", "unix milliseconds"),
        ("854668800000000", "unix microseconds"),
        ("854668800000000000", "unix nanoseconds"),
        ("19970131000000", "time as yyyymmddhhmmss"),
        ("DATE '1997-01-31'", "DATE, without a time of day"),
        ("TIMESTAMP '1997-01-31'", "TIMESTAMP"),
        ("'1997-01-31'", "ISO text"),
        ("'1997-01-31 00:00:00'", "ISO text"),
        ("'1997-01-31T02:00:00+02:00'", "ISO text"),
        ("'1997-01-31T00:00:00Z'", "ISO text"),
        ("'31/01/1997'", "text as %d/%m/%Y"),
        ("'01/31/1997 00:00'", "text as %m/%d/%Y %H:%M"),
        ("'31.01.97'", "text as %d.%m.%y"),
        ("'01/31/1997 12:00 AM'", "text as %m/%d/%Y %I:%M %p"),
    ],
)
def test_times_are_read_in_any_format(connection: duckdb.DuckDBPyConnection, written: str, words: str) -> None:
    table = given(connection, f'SELECT {written} AS "at" UNION ALL SELECT NULL')
    form = time_format(connection, "given", "at", table.columns["at"])
    assert form is not None
    assert (form.words, form.unsure) == (words, "")
    rows = connection.execute(f"SELECT epoch({form.sql}) AS t FROM given ORDER BY t").fetchall()
    assert [t for (t,) in rows] == [854_668_800, None]


@pytest.mark.parametrize("written", ["'hello'", "42", "19971341", "true", "3.5", "NULL::VARCHAR", "'0042'"])
def test_other_columns_are_not_read_as_times(connection: duckdb.DuckDBPyConnection, written: str) -> None:
    table = given(connection, f"SELECT {written} AS at")
    assert time_format(connection, "given", "at", table.columns["at"]) is None


def test_an_ambiguous_order_of_day_and_month_is_reported(connection: duckdb.DuckDBPyConnection) -> None:
    given(connection, "SELECT unnest(['03/04/2024', '05/06/2024']) AS at")
    form = time_format(connection, "given", "at", "VARCHAR")
    assert form is not None
    assert form.unsure == "day and month may be swapped"
    given(connection, "SELECT unnest(['03/04/2024', '25/06/2024']) AS at")
    form = time_format(connection, "given", "at", "VARCHAR")
    assert form is not None
    assert (form.words, form.unsure) == ("text as %d/%m/%Y", "")


def test_a_few_bad_times_become_missing_and_with_many_it_is_no_time(connection: duckdb.DuckDBPyConnection) -> None:
    for bad, readable in (
        (5, True),
        (10, True),
        (11, False),
        (50, False),
    ):  # on these formats are tried first
        given(connection, f"SELECT if(i < {bad}, 'unknown', '20240131') AS at FROM range(1000) AS rows(i)")
        form = time_format(connection, "given", "at", "VARCHAR")
        assert (form is not None) is readable
        if form is not None:
            assert connection.execute(f"SELECT count({form.sql}) FROM given").fetchall() == [(1000 - bad,)]


@pytest.mark.parametrize(
    ("written", "number"),
    [("1.5", 1.5), ("'1.5'", 1.5), ("'1,5'", 1.5), ("'$1.50'", 1.5), ("'1,234.5'", 1234.5), ("'€ 1,5'", 1.5)],
)
def test_numbers_are_read_in_any_format(connection: duckdb.DuckDBPyConnection, written: str, number: float) -> None:
    table = given(connection, f"SELECT {written} AS price")
    form = number_format(connection, "given", "price", table.columns["price"])
    assert form is not None
    assert connection.execute(f"SELECT {form.sql}::DOUBLE FROM given").fetchall() == [(number,)]


def test_text_is_not_read_as_numbers(connection: duckdb.DuckDBPyConnection) -> None:
    given(connection, "SELECT 'cheap' AS price")
    assert number_format(connection, "given", "price", "VARCHAR") is None


SHOP = """SELECT 1 + i % 300 AS {customer}, 1600000000 + i * 600 AS {time},
    CASE WHEN i % 5 = 0 THEN 'purchase' ELSE 'view' END AS {type}, CASE WHEN i % 5 = 0 THEN 10.5 END AS {amount},
    i % 50 AS {item}, i AS row FROM range(3000) AS rows(i)"""


@pytest.mark.parametrize(
    "names",
    [
        ("user_id", "ts", "behavior", "dollars", "sku"),
        ("visitorid", "timestamp", "event", "revenue", "itemid"),
        ("CustomerID", "OrderDate", "Action", "TotalPrice", "ProductID"),
        ("client", "created_at", "type", "price", "product_id"),
        ("household_key", "date", "event_type", "sales_value", "article"),
        ("Account ID", "Event Time", "event name", "order total", "item id"),
    ],
)
def test_columns_are_recognised_by_their_usual_names(
    connection: duckdb.DuckDBPyConnection, names: tuple[str, ...]
) -> None:
    quoted = dict(zip(("customer", "time", "type", "amount", "item"), (f'"{name}"' for name in names), strict=True))
    roles = find_roles(connection, given(connection, SHOP.format(**quoted)))
    assert roles.sql == {
        "customer_id": f'"{names[0]}"',
        "event_time": f'to_timestamp("{names[1]}"::DOUBLE)',
        "event_type": f'"{names[2]}"',
        "amount": f'"{names[3]}"',
        "item_id": f'"{names[4]}"',
    }
    assert roles.unsure == []


def test_columns_with_other_names_are_recognised_by_content_and_reported(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    table = given(connection, SHOP.format(customer="a", time="b", type="c", amount="d", item="e"))
    roles = find_roles(connection, table)
    assert (roles.sql["customer_id"], roles.sql["event_type"]) == ('"a"', '"c"')
    assert roles.sql["event_time"] == 'to_timestamp("b"::DOUBLE)'
    assert len(roles.unsure) == 3
    assert "customer_id from 'a': its content looks right, its name does not" in roles.unsure


def test_an_id_with_duplicates_is_no_event_id(connection: duckdb.DuckDBPyConnection) -> None:
    shop = SHOP.format(customer="customer", time="time", type="type", amount="amount", item="item")
    unique = find_roles(connection, given(connection, f"SELECT *, 'o' || row AS order_id FROM ({shop})"))
    assert unique.sql["event_id"] == '"order_id"'
    lines = find_roles(connection, given(connection, f"SELECT *, 'o' || row // 3 AS order_id FROM ({shop})"))
    assert "event_id" not in lines.sql
    assert "'order_id' is on several rows" in lines.unsure[0]


def test_a_unit_price_is_multiplied_and_durations_become_seconds(connection: duckdb.DuckDBPyConnection) -> None:
    shop = SHOP.format(customer="customer", time="time", type="type", amount='"UnitPrice"', item="item")
    roles = find_roles(connection, given(connection, f'SELECT *, 2 AS "Quantity", 1500 AS duration_ms FROM ({shop})'))
    assert roles.sql["amount"] == '"Quantity" * "UnitPrice"'
    assert roles.sql["duration_s"] == '"duration_ms" / 1e3'
    assert any("unit price" in line for line in roles.unsure)


def test_ids_read_as_fractions_become_whole_numbers_again(connection: duckdb.DuckDBPyConnection) -> None:
    shop = SHOP.format(customer="number", time="time", type="type", amount="amount", item="item")
    roles = find_roles(connection, given(connection, f'SELECT number::DOUBLE AS "CustomerID", * FROM ({shop})'))
    assert roles.sql["customer_id"] == '"CustomerID"::BIGINT'


def test_ids_like_numbers_with_an_exponent_are_read_as_text(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    rows = ["customer,sold,total"] + [f"{name},2024-01-0{day},1e2" for name in ("1e5", "77", "1e6") for day in (1, 2)]
    (tmp_path / "orders.csv").write_text("\n".join(rows))
    table = read_table(connection, str(tmp_path / "orders.csv"), tmp_path, "data")
    roles = find_roles(connection, table)
    query = f"SELECT DISTINCT {roles.sql['customer_id']}, {roles.sql['amount']} FROM data ORDER BY 1"
    assert connection.execute(query).fetchall() == [("1e5", 100.0), ("1e6", 100.0), ("77", 100.0)]
    assert "'customer': 'VARCHAR'" in table.sql


def test_ids_that_a_spreadsheet_has_shortened_are_reported(connection: duckdb.DuckDBPyConnection) -> None:
    rows = ", ".join(f"('1.2{n % 3}E+11', TIMESTAMP '2024-01-01' + to_days({n}))" for n in range(9))
    roles = find_roles(connection, given(connection, f"FROM (VALUES {rows}) AS rows(customer, sold)"))
    assert any("a spreadsheet has shortened long ids" in line for line in roles.unsure)


def test_one_row_per_customer_suggests_a_snapshot(connection: duckdb.DuckDBPyConnection) -> None:
    roles = find_roles(
        connection, given(connection, "SELECT i AS customer_id, 1600000000 + i AS time FROM range(99) t(i)")
    )
    assert "--snapshot" in roles.unsure[0]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT 1600000000 + i AS time, 3.5 AS x FROM range(99) t(i)", "no column can be used as customer_id (there"),
        (
            "SELECT i % 9 AS customer_id, 3.5 AS x FROM range(99) t(i)",
            "no column can be used as event_time (there",
        ),
    ],
)
def test_a_table_without_customers_or_times_is_refused(
    connection: duckdb.DuckDBPyConnection, query: str, told: str
) -> None:
    with pytest.raises(InputError) as refused:
        find_roles(connection, given(connection, query))
    assert told in str(refused.value)
    assert "SELECT that names one AS" in str(refused.value)


@pytest.mark.parametrize(
    ("types", "purchase", "view"),
    [
        (["view", "cart", "purchase"], "purchase", "view"),
        (["pv", "fav", "cart", "buy"], "buy", "pv"),
        (["page_view", "add_to_cart", "order_completed"], "order_completed", "page_view"),
        (["Product Viewed", "Transactions", "view"], "Transactions", "view"),
        (["addtocart", "transaction"], "transaction", None),
    ],
)
def test_event_types_are_recognised_by_name(types: list[str], purchase: str, view: str | None) -> None:
    assert named(types, BUYING) == purchase
    assert named(types, VIEWING) == view


@pytest.mark.parametrize(
    ("amount", "why"),
    [
        ("if(kind = '3', 9, NULL)", "'3' is used because it alone has amounts"),
        ("NULL", "'4' is used because it is the rarest"),
    ],
)
def test_an_unnamed_purchase_is_the_type_with_amounts_or_the_rarest(
    connection: duckdb.DuckDBPyConnection, amount: str, why: str
) -> None:
    table = given(
        connection, f"SELECT *, {amount} AS amount FROM (SELECT unnest(['1', '1', '1', '3', '3', '4']) AS kind)"
    )
    roles = ColumnRoles(sql={"event_type": "kind"} | ({} if amount == "NULL" else {"amount": "amount"}))
    find_event_types(connection, table, roles)
    assert why in roles.unsure[0]


def test_without_types_all_are_purchases_and_without_amounts_each_counts_one(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    table = given(connection, "SELECT 1 AS customer_id FROM range(9)")
    roles = ColumnRoles()
    assert find_event_types(connection, table, roles).counts == {"purchase": 9}
    assert roles.sql == {"event_type": "'purchase'", "amount": "1"}
    assert len(roles.unsure) == 2


def test_names_are_split_into_words_and_become_feature_names() -> None:
    assert parts("OrderDate") == parts("order date") == parts("ORDER_DATE") == ["order", "date"]
    assert parts("CustomerID") == ["customer", "id"]
    taken = {"customer_id"}
    assert [snake(name, taken) for name in ("Age", "age", "2nd Order", "???", "CustomerID")] == [
        "age", "age_2", "c_2nd_order", "column", "customer_id_2",
    ]  # fmt: skip
    assert len(snake("x" * 99, taken)) <= 64


def test_counts_are_not_amounts() -> None:
    columns = dict.fromkeys(("number_of_cds", "total_items", "sales_tax", "net_amount"), "DOUBLE")
    assert candidates("amount", columns, set()) == ["net_amount"]


def cadence_of(events: Sequence[tuple[str, float]], last_day: float) -> Cadence:
    """Cadence of purchases on days, in data that ends on ``last_day``."""
    rows = ", ".join(f"('{name}', {day}, 'purchase')" for name, day in events)
    query = f"""SELECT customer_id, to_timestamp(1600000000 + day * 86400) AS event_time, event_type
        FROM (VALUES {rows}, ('end', {last_day}, 'visit')) t(customer_id, day, event_type)"""
    with OfflineStore(Source(events=query)) as store:
        assert measure(store.connection, "view") == Cadence("view", 0, 0, None)
        return measure(store.connection, "purchase")


def test_the_cadence_is_the_median_gap_and_every_customer_counts_once() -> None:
    # Gaps: a 10 and 10 (half a customer each), b 30, d 50, and c is known to take more than 25.
    events = [("a", 0), ("a", 10), ("a", 20), ("a", 20), ("b", 0), ("b", 30), ("c", 35), ("d", 0), ("d", 50)]
    assert cadence_of(events, 60) == Cadence("purchase", 4, 3, 30.0)


def test_customers_who_never_come_back_do_not_count_as_slow() -> None:
    once = [(f"once {i}", 1.0) for i in range(20)]
    assert cadence_of([*once, ("a", 0), ("a", 10), ("b", 0), ("b", 12), ("c", 0), ("c", 90)], 400).gap_days == 12.0


@pytest.mark.parametrize(("gap", "days"), [(10, 60), (40, 60), (40, 365)])
def test_a_short_history_does_not_make_gaps_look_short(gap: float, days: float) -> None:
    random = np.random.default_rng(3)
    events: list[tuple[str, float]] = []
    complete: list[float] = []  # the median gap of each customer who came twice
    for customer in range(1000):
        times = random.random() * days / 2 + np.cumsum(np.r_[0, random.exponential(gap / np.log(2), 200)])
        times = times[times <= days]
        events += [(str(customer), time) for time in times.tolist()]
        complete += [float(np.median(np.diff(times)))] if len(times) > 1 else []
    assert cadence_of(events, days).gap_days == pytest.approx(gap, rel=0.12)
    if days < 2 * gap:
        assert np.median(complete) < 0.6 * gap


@pytest.mark.parametrize(
    ("gap", "churn", "propensity"), [(0.5, 1, 1), (3, 7, 3), (10, 28, 7), (65, 182, 56), (400, 182, 182)]
)
def test_horizons_follow_the_cadence(gap: float, churn: float, propensity: float) -> None:
    days = propose_horizons(CONFIG, Cadence("purchase", 100, 90, gap), START, START + 3000 * DAY)
    assert (days.churn, days.active, days.propensity, days.short) == (churn, 2 * churn, propensity, "")


@pytest.mark.parametrize("history", [60, 138, 365, 545])
def test_a_shorter_history_has_shorter_horizons_and_enough_cutoffs(history: float) -> None:
    end = START + history * DAY
    days = propose_horizons(CONFIG, Cadence("purchase", 100, 90, 90), START, end)
    assert days.short == ""
    assert days.propensity <= days.churn < 182
    merged = {name: {**CONFIG.get(name, {}), **section} for name, section in days.sections().items()}
    lay_out(TrainingConfig.model_validate({**CONFIG, **merged}), START, end)
    assert max(days.half_lives) <= history / 2


def test_a_history_that_is_too_short_is_reported() -> None:
    days = propose_horizons(CONFIG, Cadence("purchase", 100, 90, 10), START, START + 5 * DAY)
    assert "bring a longer history" in days.short


def test_few_returning_customers_are_no_habit() -> None:
    assert Cadence("purchase", 100, 20, 10).is_habit
    assert not Cadence("purchase", 100, 19, 10).is_habit
    assert not Cadence("purchase", 0, 0, None).is_habit


AWKWARD = (
    "plain",
    'say "hi"',
    "it's",
    "back\\slash",
    "tab\there",
    "line\nbreak",
    "triple '''",
    'triple """',
    "é€😀",
    "\x7f\x01",
    "",
)


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"a = {toml_text.string(text)}") == {"a": text}
    assert tomllib.loads(f"a = {toml_text.sql(text)}")["a"].strip() == text.strip()
    assert tomllib.loads(toml_text.section("s", {text: [text, 1.5], "b": None}, "why")) == {"s": {text: [text, 1.5]}}
    assert tomllib.loads(toml_text.comments([text]) + "b = 1") == {"b": 1}


def test_placeholders_scaled_to_an_amount_are_valid_economics() -> None:
    figures = Economics.model_validate(toml_text.economics(25.98, margin=0.25))
    assert (figures.churn.contact_cost, figures.churn.offer_cost, figures.propensity.offer_cost) == (0.1, 2.6, 1.0)
    read = tomllib.loads(toml_text.economics_sections(figures, {"event": "buy"}, "made up"))["economics"]
    assert Economics.model_validate(read) == figures.model_copy(update={"event": "buy"})


def test_an_invalid_config_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="economics: Field required"):
        check('[source]\nevents = "SELECT 1"\n[candidates]', Path())


SQL_SHOP = """SELECT 'c' || hash(i) % 200 AS "user", TIMESTAMP '2023-01-01' + to_minutes(i * 50) AS "at $",
    CASE WHEN i % 3 = 0 THEN 'order' ELSE 'view' END AS event, CASE WHEN i % 3 = 0 THEN 20.0 + i % 7 END AS "price $",
    i % 40 AS product FROM range(12000) AS rows(i) -- a comment"""


def test_sql_becomes_a_config_that_reads_the_same_events() -> None:
    proposal = scaffold_events(SQL_SHOP, None, Path())
    config = check(proposal.text, Path())
    assert "UNSURE: event_time from 'at $': its content looks right" in proposal.text
    assert "UNSURE: event_time from 'at $': its content looks right" not in proposal.facts
    assert (config.churn.event, config.propensity.event, config.economics.event) == ("order",) * 3
    assert (config.interests.view, config.interests.purchase) == ("view", "order")
    assert config.candidates is not None
    assert "ASSUMPTIONS, please replace them" in proposal.text
    with OfflineStore(config.source) as store:
        assert store.summary.events == 12_000
        row = store.connection.execute("SELECT sum(amount), count(item_id), min(t) FROM events").fetchall()[0]
    assert row == (sum(20.0 + i % 7 for i in range(0, 12_000, 3)), 12_000, 1_672_531_200)
    lay_out(config, store.summary.start, store.summary.end)


def test_with_rare_purchases_churn_is_defined_by_views() -> None:
    rare = (
        f"SELECT * REPLACE (if(event = 'order', 'o' || row_number() OVER (), \"user\") AS \"user\") FROM ({SQL_SHOP}\n)"
    )
    proposal = scaffold_events(rare, None, Path())
    config = check(proposal.text, Path())
    assert (config.churn.event, config.propensity.event) == ("view", "order")
    assert any("too rare to define churn" in line for line in proposal.unsure)


def test_attributes_get_feature_names_and_times_are_left_out() -> None:
    people = """SELECT 'c' || i AS "Client ID", i AS "Net Income", 'x' AS "2nd", DATE '2020-01-01' AS joined
        FROM range(200) AS rows(i)"""
    proposal = scaffold_events(SQL_SHOP, people, Path())
    with OfflineStore(check(proposal.text, Path()).source) as store:
        columns = [row[0] for row in store.connection.execute("DESCRIBE attributes").fetchall()]
    assert columns == ["customer_id", "net_income", "c_2nd"]
    assert any("'joined' is a time" in line for line in proposal.unsure)


@pytest.mark.parametrize("name", ["valid_from", "Valid From", "updated_at", "dbt_valid_from"])
def test_the_time_from_which_attributes_are_valid_is_proposed(name: str) -> None:
    events = (
        "SELECT i % 50 AS customer_id, TIMESTAMP '2024-01-01' + to_hours(i) AS at, 9 AS amount FROM range(9000) t(i)"
    )
    changes = f"""SELECT i % 50 AS customer_id, TIMESTAMP '2024-01-01' + to_hours(i) AS "{name}", i % 3 AS tier,
        DATE '2020-01-01' AS birthday FROM range(200) t(i)"""
    scaffold = scaffold_events(events, changes, Path())
    with OfflineStore(Source.model_validate(tomllib.loads(scaffold.text)["source"])) as store:
        assert store.attributes_have_times
        assert set(store.attribute_columns) == {"customer_id", "tier"}
    assert any("is taken as the time from which the row is valid" in line for line in scaffold.unsure)


def test_attributes_without_a_time_are_named_as_todays() -> None:
    events = (
        "SELECT i % 50 AS customer_id, TIMESTAMP '2024-01-01' + to_hours(i) AS at, 9 AS amount FROM range(9000) t(i)"
    )
    scaffold = scaffold_events(events, "SELECT i AS customer_id, i % 3 AS tier FROM range(50) t(i)", Path())
    assert any("today's values are used at every past cut-off" in line for line in scaffold.unsure)


def test_attributes_without_an_id_are_refused() -> None:
    with pytest.raises(InputError, match="--attributes: no column looks like the customer's id"):
        scaffold_events(SQL_SHOP, "SELECT 1 AS age", Path())


CRM = """SELECT 1000 + i AS "Customer Number", {label}, i % 40 AS "Tenure", 'x' || i % 3 AS "Plan $"
    FROM range(400) AS rows(i)"""


@pytest.mark.parametrize(
    ("label", "name", "target"),
    [
        ('(i % 4 = 0)::INTEGER AS "Churn"', "churn", "churn"),
        ('i % 4 = 0 AS "Exited"', "exited", "churn"),
        ("if(i % 4 = 0, 'Yes', 'No') AS churned", "churned", "churn"),
        ("if(i % 4 > 0, 'Existing Customer', 'Attrited Customer') AS \"Attrition Flag\"", "attrition_flag", "churn"),
        ('i % 4 = 0 AS "Revenue"', "revenue", "propensity"),
        ("i % 4 = 0 AS converted", "converted", "propensity"),
        ("i % 4 = 0 AS target", "target", "churn"),
    ],
)
def test_the_label_of_a_snapshot_is_recognised_by_name_and_made_0_or_1(label: str, name: str, target: str) -> None:
    proposal = scaffold_snapshot(CRM.format(label=label), None, Path())
    config = check(proposal.text, Path())
    assert config.snapshot is not None
    assert (config.snapshot.label, config.snapshot.target, config.snapshot.leave_out) == (name, target, ())
    assert config.economics.value == 100
    with duckdb.connect() as connection:
        query = config.source.sql(config.snapshot.table)
        assert connection.execute(f"SELECT sum({name}), min(customer_id) FROM ({query})").fetchall() == [(100, 1000)]
        columns = [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]
    assert columns == ["customer_id", name, "tenure", "plan"]


def test_a_label_can_be_given_and_must_have_two_values() -> None:
    table = CRM.format(label="i % 4 = 0 AS unhappy")
    with pytest.raises(InputError, match=r"named like a label \(there are unhappy\): give --label COLUMN"):
        scaffold_snapshot(table, None, Path())
    assert 'label = "unhappy"' in scaffold_snapshot(table, "UNHAPPY", Path()).text
    with pytest.raises(InputError, match="--label: there is no column 'sad', there are Customer Number, unhappy"):
        scaffold_snapshot(table, "sad", Path())
    with pytest.raises(InputError, match="--label: column 'Tenure' does not have exactly two values"):
        scaffold_snapshot(table, "Tenure", Path())


def test_leaking_columns_are_left_out_and_future_spend_is_the_value() -> None:
    table = CRM.format(
        label="""i % 4 = 0 AS conversion, (i % 4 = 0 OR i % 5 = 0) AS visit, if(i % 4 = 0, i % 90, 0)::DOUBLE AS spend,
        if(i % 4 = 0, 'thanks', NULL) AS reply, 'Ms ' || i AS name"""
    )
    proposal = scaffold_snapshot(table, None, Path())
    snapshot = check(proposal.text, Path()).snapshot
    assert snapshot is not None
    assert (snapshot.label, snapshot.value) == ("conversion", "spend")
    assert set(snapshot.leave_out) == {"visit", "reply", "name"}
    assert len(proposal.unsure) == 4


def test_rows_are_numbered_without_a_customer_id() -> None:
    proposal = scaffold_snapshot("SELECT i % 4 = 0 AS churn, i % 7 AS calls FROM range(400) AS rows(i)", None, Path())
    assert "row_number() OVER () AS customer_id" in proposal.text
    assert "rows are numbered" in proposal.unsure[0]


def test_a_snapshot_that_cannot_be_trained_on_is_reported() -> None:
    proposal = scaffold_snapshot("SELECT i = 4 AS churn, i % 7 AS calls FROM range(400) AS rows(i)", None, Path())
    assert any("training cannot run yet" in line for line in proposal.unsure)
