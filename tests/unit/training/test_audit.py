"""The audit: each kind of trouble is found in data that have it, and clean data have none."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any

import duckdb
import pytest
from rich.console import Console

from feature_store.config import Snapshot, Source
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from training.audit.events import SAMPLE_EVENTS, sample_of_customers
from training.audit.findings import audit, is_fatal, print_findings, stop_on_fatal, totals
from training.audit.snapshot import audit_snapshot
from training.config import TrainingConfig, Treatment
from training.data.cutoffs import lay_out
from training.evidence import Finding

CLEAN = """
WITH drawn AS (
    SELECT i, 'c' || hash(i, 1) % 600 AS customer_id, hash(i, 2) % (400 * 86400) AS s, hash(i, 3) % 10 < 3 AS buys
    FROM range(20000) AS rows(i)
), clean AS (
    SELECT customer_id, TIMESTAMP '2024-01-01' + to_seconds(s::BIGINT) AS event_time,
        CASE WHEN buys THEN 'purchase' ELSE 'view' END AS event_type,
        CASE WHEN buys THEN exp(3 + (hash(i, 4) % 1000) / 500) END AS amount,
        CASE WHEN NOT buys THEN 5.0 + hash(i, 5) % 200 END AS duration_s,
        'item' || hash(i, 6) % 50 AS item_id, 'e' || i AS event_id
    FROM drawn
)
"""
"""A shop of 600 customers and 400 days, as the table ``clean``."""

ATTRIBUTES = """SELECT 'c' || i AS customer_id, 20 + hash(i) % 60 AS age, 'town' || hash(i, 1) % 9 AS town
    FROM range(600) AS rows(i)"""

DATED = f"SELECT *, TIMESTAMP '2020-01-01' AS valid_from FROM ({ATTRIBUTES})"

ONE_DEAR = "event_id = (SELECT min(event_id) FROM clean WHERE amount > 100)"

OFFERED = {"column": "age", "probability": 0.5, "outcome": "age", "time": "age"}

OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}


def config(events: str = "FROM clean", attributes: str | None = None, **sections: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "source": {"events": CLEAN + events, "attributes": attributes},
            "candidates": {},
            "economics": {"margin": 0.3, "churn": OFFER, "propensity": OFFER},
            **sections,
        }
    )


def findings(events: str = "FROM clean", attributes: str | None = None, **sections: Any) -> list[Finding]:
    settings = config(events, attributes, **sections)
    with OfflineStore(settings.source) as source:
        return audit(settings, source)


def changed(column: str, value: str) -> str:
    """The clean events with other values in a column."""
    return f"SELECT * REPLACE ({value} AS {column}) FROM clean"


def twice(which: str) -> str:
    """The clean events without ids, some of them a second time."""
    without_id = "SELECT * EXCLUDE (event_id) FROM clean"
    return f"{without_id} UNION ALL {without_id} WHERE {which}"


def brief(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.check, finding.where) for finding in found]


def only(found: list[Finding], check: str) -> Finding:
    assert [finding.check for finding in found].count(check) == 1, brief(found)
    return next(finding for finding in found if finding.check == check)


def test_ids_that_are_read_as_numbers_are_fatal_for_customers() -> None:
    finding = only(findings(changed("customer_id", "hash(customer_id)::DOUBLE")), "ids")
    assert (finding.severity, finding.where) == ("fatal", "events.customer_id")
    assert "types = {'customer_id': 'VARCHAR'}" in finding.fix
    finding = only(findings(changed("item_id", "hash(item_id)::DOUBLE")), "ids")
    assert (finding.severity, finding.where) == ("warning", "events.item_id")
    numbers = f"SELECT * REPLACE (hash(customer_id)::DOUBLE AS customer_id) FROM ({DATED})"
    assert ("fatal", "ids", "attributes.customer_id") in brief(findings(attributes=numbers))


def test_ids_that_a_spreadsheet_shortened_are_counted() -> None:
    shortened = "if(hash(customer_id) % 3 = 0, '1.' || hash(customer_id) % 90 || 'E+11', customer_id)"
    finding = only(findings(changed("customer_id", shortened)), "ids")
    assert (finding.severity, finding.where) == ("warning", "events.customer_id")
    assert "look like numbers that a spreadsheet shortened" in finding.message
    assert findings(changed("customer_id", "replace(customer_id, 'c', '1e')")) == []


@pytest.mark.parametrize("name", ["Purchase", "Order Completed"])
def test_a_spelling_of_a_type_that_the_config_names_is_named_with_it(name: str) -> None:
    finding = only(findings(changed("event_type", f"if({ONE_DEAR}, '{name}', event_type)")), "unread type")
    assert (finding.severity, finding.where) == ("warning", f"events of type '{name}'")
    assert finding.message == "1 events have this type, and the config names 'purchase'"


def test_types_that_no_feature_reads_are_listed_unless_all_types_are_candidates() -> None:
    feature = {"name": "spend", "aggregate": "sum", "event": "purchase", "field": "amount", "half_life_days": 30}
    finding = only(findings(candidates=None, feature=[feature]), "unread type")
    assert finding.severity == "note"
    assert re.fullmatch(r"[\d,]+ events have types that no feature reads: view", finding.message)
    named = only(findings(candidates={"events": ["purchase"]}), "unread type")
    assert named.message == finding.message


def test_clean_data_has_no_findings() -> None:
    assert findings(attributes=DATED) == []


@pytest.mark.parametrize(
    ("events", "severity", "check", "where"),
    [
        (
            changed("customer_id", "if(hash(event_id) % 10 = 0, NULL, customer_id)"),
            "warning",
            "completeness",
            "events.customer_id",
        ),
        (changed("customer_id", "if(event_id = 'e7', '', customer_id)"), "note", "completeness", "events.customer_id"),
        (
            changed("event_time", "if(hash(event_id) % 10 = 0, NULL, event_time)"),
            "warning",
            "completeness",
            "events.event_time",
        ),
        (
            changed("event_type", "if(hash(event_id) % 10 = 0, NULL, event_type)"),
            "warning",
            "completeness",
            "events.event_type",
        ),
        (
            changed("event_time", "if(event_id = 'e7', now()::TIMESTAMP + INTERVAL 3 DAYS, event_time)"),
            "note",
            "completeness",
            "events.event_time",
        ),
        (changed("amount", "if(hash(event_id) % 10 = 0, NULL, amount)"), "warning", "completeness", "events.amount"),
        (changed("amount", "if(hash(event_id) % 99 = 0, NULL, amount)"), "note", "completeness", "events.amount"),
        (
            changed("item_id", "if(amount > 0 AND hash(event_id) % 2 = 0, NULL, item_id)"),
            "note",
            "completeness",
            "events.item_id",
        ),
        (twice("amount > 50"), "warning", "duplicates", "source.events"),
        (twice("event_id = 'e7'"), "note", "duplicates", "source.events"),
        (changed("event_id", "customer_id || event_id[:3]"), "warning", "duplicates", "events.event_id"),
        (
            changed("event_time", "if(hash(event_id) % 99 = 0, TIMESTAMP '1970-01-01', event_time)"),
            "warning",
            "out of range",
            "events.event_time",
        ),
        (
            changed("event_time", "if(event_id = 'e7', TIMESTAMP '2022-01-01', event_time)"),
            "warning",
            "lone events",
            "events.event_time",
        ),
        (
            changed("event_time", "if(event_id = 'e7', TIMESTAMP '2026-01-01', event_time)"),
            "warning",
            "lone events",
            "events.event_time",
        ),
        (changed("event_time", "event_time::DATE::TIMESTAMP"), "note", "dates only", "events.event_time"),
        (
            changed("event_time", "if(amount > 0, event_time::DATE::TIMESTAMP, event_time)"),
            "warning",
            "dates only",
            "events.event_time",
        ),
        (
            "FROM clean WHERE event_time NOT BETWEEN '2024-06-01' AND '2024-06-09'",
            "warning",
            "gap",
            "events.event_time",
        ),
        ("FROM clean WHERE event_time::DATE <> '2024-12-25'", "note", "gap", "events.event_time"),
        (
            "FROM clean WHERE event_time < '2025-01-20' OR hash(event_id) % 4 = 0",
            "warning",
            "falling volume",
            "events.event_time",
        ),
        (
            changed("amount", "if(hash(event_id) % 500 = 0, amount * 1e4, amount)"),
            "warning",
            "outliers",
            "events.amount",
        ),
        (
            changed(
                "amount", "if(event_id = (SELECT min(event_id) FROM clean WHERE amount > 100), amount * 100, amount)"
            ),
            "note",
            "outliers",
            "events.amount",
        ),
        (
            changed("duration_s", "if(hash(event_id) % 500 = 0, duration_s * 1e5, duration_s)"),
            "warning",
            "outliers",
            "events.duration_s",
        ),
        (changed("amount", "if(hash(event_id) % 20 = 0, -amount, amount)"), "note", "negative values", "events.amount"),
        (changed("amount", "-amount"), "warning", "negative values", "events.amount"),
        (
            changed("duration_s", "if(hash(event_id) % 99 = 0, -duration_s, duration_s)"),
            "warning",
            "negative values",
            "events.duration_s",
        ),
        (
            changed("event_type", "if(event_time > '2024-11-01' AND hash(event_id) % 3 = 0, 'wish', event_type)"),
            "warning",
            "late type",
            "events of type 'wish'",
        ),
        (
            changed("event_type", "if(event_time < '2024-11-01' AND hash(event_id) % 3 = 0, 'call', event_type)"),
            "warning",
            "stopped type",
            "events of type 'call'",
        ),
        (
            changed("event_type", "if(event_type = 'view', 'view ' || hash(event_id) % 900, event_type)"),
            "warning",
            "event types",
            "events.event_type",
        ),
        (
            changed("customer_id", "if(hash(event_id) % 5 = 0, 'guest', customer_id)"),
            "warning",
            "heavy customer",
            "events.customer_id",
        ),
        (
            changed("customer_id", "if(event_type = 'purchase', event_id, customer_id)"),
            "warning",
            "one purchase",
            "events of type 'purchase'",
        ),
        (
            changed("customer_id", "if(event_type = 'purchase' AND hash(event_id) % 5 = 0, event_id, customer_id)"),
            "note",
            "one purchase",
            "events of type 'purchase'",
        ),
        ("FROM clean WHERE customer_id < 'c2'", "warning", "customers", "source.events"),
        ("FROM clean WHERE customer_id < 'c12'", "fatal", "customers", "source.events"),
        ("FROM clean WHERE event_time < '2024-05-01'", "fatal", "history", "evaluation"),
    ],
)
def test_problems_in_events_are_found(events: str, severity: str, check: str, where: str) -> None:
    result = findings(events)
    assert (severity, check, where) in brief(result), brief(result)
    for finding in result:
        assert finding.message
        assert finding.fix
        assert finding.share is None or 0 <= finding.share <= 1


def test_no_finding_names_a_customer() -> None:
    reported = str(findings(changed("customer_id", "if(hash(event_id) % 5 = 0, 'anna@example.org', customer_id)")))
    assert "heavy customer" in reported
    assert "anna" not in reported


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"churn": {"event": "purchse"}}, "churn.event"),
        ({"propensity": {"event": "purchse"}}, "propensity.event"),
        ({"economics": {"event": "order", "margin": 0.3, "churn": OFFER, "propensity": OFFER}}, "economics.event"),
        ({"feature": [{"name": "last", "aggregate": "latest", "event": "visit"}]}, "feature 'last'"),
        ({"candidates": {"events": ["purchase", "visit"]}}, "candidates.events"),
    ],
)
def test_event_types_missing_from_the_source_are_fatal_and_existing_ones_are_listed(sections: Any, where: str) -> None:
    result = only(findings(**sections), "config")
    assert (result.severity, result.where) == ("fatal", where)
    assert result.fix == "name one that it has: view, purchase"


@pytest.mark.parametrize(
    ("interests", "where"),
    [({"view": "visit"}, "interests.view"), ({"view": "view", "purchase": "buy"}, "interests.purchase")],
)
def test_missing_event_types_of_interests_are_only_a_warning(interests: dict[str, str], where: str) -> None:
    result = only(findings(interests=interests), "config")
    assert (result.severity, result.where) == ("warning", where)
    assert result.fix == "name one that it has: view, purchase"


def test_default_event_types_of_interests_may_be_missing() -> None:
    assert "config" not in str(brief(findings(changed("event_type", "if(amount > 0, 'purchase', 'look')"))))


def test_a_rare_event_type_named_in_the_config_is_known_among_many_types() -> None:
    types = "CASE WHEN event_id < 'e1001' AND amount > 0 THEN 'purchase' ELSE 'view ' || hash(event_id) % 900 END"
    events = changed("event_type", types)
    assert "config" not in [finding.check for finding in findings(events)]


def test_a_short_history_is_reported_with_the_message_of_the_cutoffs() -> None:
    result = only(findings("FROM clean WHERE event_time < '2024-05-01'"), "history")
    assert "days give" in result.message
    assert "cut-offs" in result.message
    assert result.fix.startswith("bring a longer history")


@pytest.mark.parametrize(
    ("attributes", "severity", "check", "where"),
    [
        (
            f"SELECT * REPLACE (if(age < 70, NULL, age) AS age) FROM ({ATTRIBUTES})",
            "warning",
            "completeness",
            "attributes.age",
        ),
        (
            f"SELECT * REPLACE (if(age < 30, NULL, age) AS age) FROM ({ATTRIBUTES})",
            "note",
            "completeness",
            "attributes.age",
        ),
        (f"SELECT *, NULL::DOUBLE AS income FROM ({ATTRIBUTES})", "warning", "completeness", "attributes.income"),
        (f"SELECT *, 'DE' AS country FROM ({ATTRIBUTES})", "note", "constant column", "attributes.country"),
        (f"SELECT *, 'Ms ' || customer_id AS name FROM ({ATTRIBUTES})", "warning", "id column", "attributes.name"),
        (
            f"SELECT *, hash(customer_id) % 90 || ' Rd' AS road FROM ({ATTRIBUTES})",
            "warning",
            "many values",
            "attributes.road",
        ),
        (
            f"SELECT *, DATE '2020-01-01' + age::INTEGER AS since FROM ({ATTRIBUTES})",
            "note",
            "column type",
            "attributes.since",
        ),
        (f"FROM ({ATTRIBUTES}) WHERE customer_id > 'c2'", "warning", "completeness", "source.attributes"),
        (f"FROM ({ATTRIBUTES}) WHERE customer_id <> 'c2'", "note", "completeness", "source.attributes"),
    ],
)
def test_problems_in_attributes_are_found(attributes: str, severity: str, check: str, where: str) -> None:
    assert (severity, check, where) in brief(findings(attributes=attributes))


def test_unused_attributes_are_not_checked() -> None:
    reported = findings(attributes=f"SELECT *, 'DE' AS country FROM ({ATTRIBUTES})", candidates={"attributes": ["age"]})
    assert brief(reported) == [("warning", "attributes without times", "source.attributes")]
    assert reported[0].message.startswith("age: these are today's values")


def test_attributes_with_times_need_no_warning() -> None:
    assert findings(attributes=DATED, candidates={"attributes": ["age"]}) == []
    features = [{"name": f"last_{kind}", "aggregate": "latest", "event": kind} for kind in ("purchase", "view")]
    assert findings(attributes=ATTRIBUTES, candidates=None, feature=features) == []  # no attribute is learnt from


def test_an_attribute_that_was_written_after_the_cut_off_is_a_leak() -> None:
    with OfflineStore(config().source) as source:
        plan = lay_out(config(), source.summary.start, source.summary.end)
    cutoff = plan.newest_known
    later = f"""{CLEAN} SELECT customer_id, count(*) FILTER (event_type = 'purchase' AND epoch(event_time) > {cutoff}
        AND epoch(event_time) <= {cutoff} + 28 * 86400) AS orders, hash(customer_id) % 7 AS age{{time}}
        FROM clean GROUP BY customer_id"""
    today = findings(attributes=later.format(time=""))
    leak = only(today, "leak")
    assert (leak.severity, leak.where) == ("warning", "attributes.orders")
    assert leak.message.startswith("it predicts churn after ")
    only(today, "attributes without times")
    # With the time when it was written, it is not yet there at the cut-off, and cannot leak.
    written = f", to_timestamp({cutoff} + 28 * 86400) AS valid_from"
    assert "leak" not in [finding.check for finding in findings(attributes=later.format(time=written))]


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"feature": [{"name": "income", "aggregate": "attribute"}]}, "feature 'income'"),
        ({"candidates": {"attributes": ["age", "income"]}}, "candidates.attributes"),
        ({"treatment": {"column": "sent", "probability": 0.5, "outcome": "age", "time": "age"}}, "treatment.column"),
        (
            {"treatment": {"column": "age", "probability": "chance", "outcome": "age", "time": "age"}},
            "treatment.probability",
        ),
        ({"treatment": {"column": "age", "probability": 0.5, "outcome": "age", "time": "at"}}, "treatment.time"),
    ],
)
def test_missing_attributes_are_fatal(sections: Any, where: str) -> None:
    result = only(findings(attributes=ATTRIBUTES, **sections), "config")
    assert (result.severity, result.where) == ("fatal", where)
    assert result.fix == "select it there; it has age, town"


def test_large_sources_are_sampled_by_customer_and_small_ones_are_not() -> None:
    assert sample_of_customers(SAMPLE_EVENTS) == "events"
    assert "hash(customer_id) % 10 = 0" in sample_of_customers(10 * SAMPLE_EVENTS)


def test_problems_are_found_in_sampled_large_snapshots() -> None:
    large = PEOPLE.replace("range(2000)", "range(250000)")
    assert of_snapshot(large) == []
    result = of_snapshot(f"SELECT *, if(churned, 1.5, NULL) AS refund, customer_id AS again FROM ({large})")
    assert {("warning", "leak", "snapshot.refund"), ("warning", "id column", "snapshot.again")} <= set(brief(result))


def test_only_a_fatal_finding_stops_the_fit_and_its_text_is_shown() -> None:
    warning = Finding(severity="warning", check="gap", where="events", message="a hole", fix="fill it")
    fatal = warning.model_copy(update={"severity": "fatal"})
    stop_on_fatal([warning])
    with pytest.raises(InputError, match=r"^events: a hole: fill it$"):
        stop_on_fatal([warning, fatal])
    with pytest.raises(InputError, match=r"^events: a hole: fill it \(and 1 more: 'tidemark audit' shows"):
        stop_on_fatal([fatal, fatal])
    assert (is_fatal([warning]), is_fatal([warning, fatal])) == (False, True)


def test_findings_are_printed_verbatim_the_most_severe_first_with_totals() -> None:
    result = findings(
        changed("event_type", "if(event_time > '2024-11-01' AND amount > 50, '[red]', event_type)"),
        churn={"event": "purchse"},
    )
    file = io.StringIO()
    print_findings(Console(file=file, width=200), result)
    lines = file.getvalue().splitlines()
    assert lines[3].split()[:2] == ["fatal", "churn.event"]
    assert "events of type '[red]'" in file.getvalue()
    assert lines[-1] == totals(result)
    assert totals(result).startswith("1 fatal, 1 warning, ")


def test_without_findings_only_the_totals_are_printed() -> None:
    file = io.StringIO()
    print_findings(Console(file=file), [])
    assert file.getvalue() == "0 fatal, 0 warnings, 0 notes\n"


PEOPLE = """SELECT 'c' || i AS customer_id, hash(i, 1) % 5 = 0 AS churned, 20 + hash(i, 2) % 60 AS age,
    'town' || hash(i, 3) % 9 AS town, (hash(i, 4) % 5000)::DOUBLE AS spend FROM range(2000) AS rows(i)"""


def of_snapshot(table: str = PEOPLE, treatment: Treatment | None = None, **keys: Any) -> list[Finding]:
    connection = database()
    connection.execute(f"CREATE OR REPLACE TABLE attributes AS {table}")
    snapshot = Snapshot.model_validate({"table": table, "label": "churned", "value": "spend", **keys})
    return audit_snapshot(snapshot, connection, treatment)


@cache
def database() -> duckdb.DuckDBPyConnection:
    """One for all snapshots: to make one takes longer than to audit a snapshot."""
    return duckdb.connect()


def test_a_clean_snapshot_has_no_findings() -> None:
    assert of_snapshot() == []
    assert of_snapshot(f"SELECT * REPLACE (churned::INTEGER AS churned) FROM ({PEOPLE})") == []


@pytest.mark.parametrize(
    ("table", "severity", "check", "where"),
    [
        ("SELECT * REPLACE ('c1' AS customer_id) FROM (PEOPLE)", "fatal", "duplicates", "snapshot.customer_id"),
        ("FROM (PEOPLE) LIMIT 40", "fatal", "customers", "snapshot.table"),
        ("FROM (PEOPLE) LIMIT 150", "warning", "customers", "snapshot.table"),
        ("SELECT * EXCLUDE (churned) FROM (PEOPLE)", "fatal", "config", "snapshot.label"),
        (
            "SELECT * REPLACE (if(age < 30, NULL, churned) AS churned) FROM (PEOPLE)",
            "note",
            "no label",
            "snapshot.label",
        ),
        ("SELECT * REPLACE (NULL::BOOLEAN AS churned) FROM (PEOPLE)", "fatal", "label", "snapshot.label"),
        ("SELECT * REPLACE (true AS churned) FROM (PEOPLE)", "fatal", "label", "snapshot.label"),
        ("SELECT * REPLACE (customer_id = 'c3' AS churned) FROM (PEOPLE)", "fatal", "label", "snapshot.label"),
        ("SELECT * REPLACE (churned::INTEGER + 1 AS churned) FROM (PEOPLE)", "fatal", "label", "snapshot.label"),
        ("SELECT * REPLACE (if(churned, 'Yes', 'No') AS churned) FROM (PEOPLE)", "fatal", "label", "snapshot.label"),
        ("SELECT * REPLACE (town AS spend) FROM (PEOPLE)", "fatal", "config", "snapshot.value"),
        ("SELECT *, -churned::INTEGER + age / 1000 AS score FROM (PEOPLE)", "warning", "leak", "snapshot.score"),
        ("SELECT *, if(churned, 'gone', town) AS status FROM (PEOPLE)", "warning", "leak", "snapshot.status"),
        (
            "SELECT *, if(churned, DATE '2024-01-01' + age::INTEGER, NULL) AS ended FROM (PEOPLE)",
            "warning",
            "leak",
            "snapshot.ended",
        ),
        (
            "SELECT *, if(churned, 'because ' || customer_id, NULL) AS reason FROM (PEOPLE)",
            "warning",
            "leak",
            "snapshot.reason",
        ),
        ("SELECT *, if(churned, 1.5, NULL) AS refund FROM (PEOPLE)", "warning", "leak", "snapshot.refund"),
        ("SELECT *, customer_id[2:]::INTEGER AS number FROM (PEOPLE)", "warning", "id column", "snapshot.number"),
        ("SELECT *, 1 AS one FROM (PEOPLE)", "note", "constant column", "snapshot.one"),
        ("SELECT * REPLACE (if(age < 70, NULL, age) AS age) FROM (PEOPLE)", "warning", "completeness", "snapshot.age"),
        ("SELECT *, hash(customer_id) % 90 || ' Rd' AS road FROM (PEOPLE)", "warning", "many values", "snapshot.road"),
    ],
)
def test_problems_in_a_snapshot_are_found(table: str, severity: str, check: str, where: str) -> None:
    result = of_snapshot(table.replace("PEOPLE", PEOPLE))
    assert (severity, check, where) in brief(result), brief(result)


def test_columns_left_out_are_not_reported() -> None:
    table = f"SELECT *, churned AS \"left\", 'x' || customer_id AS name FROM ({PEOPLE})"
    assert {finding.check for finding in of_snapshot(table)} == {"leak", "id column"}
    assert of_snapshot(table, leave_out=["left", "name"]) == []


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"value": "worth"}, "snapshot.value"),
        ({"contact_cost": "worth"}, "snapshot.contact_cost"),
        ({"offer_cost": "worth"}, "snapshot.offer_cost"),
        ({"group": "worth"}, "snapshot.group"),
        ({"leave_out": ["worth"]}, "snapshot.leave_out"),
    ],
)
def test_missing_columns_of_a_snapshot_are_fatal(keys: Any, where: str) -> None:
    result = only(of_snapshot(**keys), "config")
    assert (result.severity, result.where) == ("fatal", where)
    assert result.fix == "name one that it has: churned, age, town, spend"


def test_missing_treatment_columns_are_fatal() -> None:
    treatment = Treatment(column="sent", probability=0.5, outcome="spend")
    assert brief(of_snapshot(treatment=treatment)) == [("fatal", "config", "treatment.column")]


def test_a_snapshots_config_is_audited_by_its_table() -> None:
    settings = TrainingConfig.model_validate(
        {
            "snapshot": {"table": PEOPLE, "label": "gone"},
            "economics": {"margin": 0.3, "value": 9, "churn": OFFER, "propensity": OFFER},
        }
    )
    with OfflineStore(Source(events=CLEAN + "FROM clean", attributes=PEOPLE)) as source:
        assert brief(audit(settings, source)) == [("fatal", "config", "snapshot.label")]
