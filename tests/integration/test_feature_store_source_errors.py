"""What is wrong with a source is named with the mend; rows that cannot be used are left out and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout

GOOD = "SELECT 'a' AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'purchase' AS event_type"
AGE = StateLayout([Feature(name="age", aggregate="attribute")])


def refusal(events: str = GOOD, attributes: str | None = None, layout: StateLayout | None = None) -> str:
    with pytest.raises(InputError) as refused, OfflineStore(Source(events=events, attributes=attributes)) as source:
        source.states(layout or AGE, source.summary.end)
    return " ".join(str(refused.value).split())


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("SELECT 1 AS id", "source.events: column 'customer_id' is missing: select the shop's column AS customer_id"),
        (
            "SELECT 'a' AS customer_id, 'x' AS event_type",
            "source.events: column 'event_time' is missing: select the shop's column AS event_time",
        ),
        (GOOD.replace("event_type", "kind"), "source.events: column 'event_type' is missing"),
        (
            GOOD + ", 5 AS price",
            "source.events: unknown column 'price': the canonical columns are customer_id, event_time",
        ),
        (
            GOOD.replace("TIMESTAMP '2024-01-01'", "1704067200"),
            "source.events: event_time is INTEGER, not a TIMESTAMP: cast it, for example with to_timestamp(seconds)",
        ),
        (GOOD.replace("TIMESTAMP", "DATE"), "source.events: event_time is DATE, not a TIMESTAMP: cast it"),
        (GOOD.replace("TIMESTAMP", ""), "source.events: event_time is VARCHAR, not a TIMESTAMP: cast it"),
        ("SELEC 1", "source.events: Parser Error: syntax error"),
        ("DROP TABLE events", "source.events: the SQL must be a single SELECT"),
        ("SELECT * FROM nowhere", "source.events: Catalog Error: Table with name nowhere does not exist"),
        ("SELECT * FROM '/no/such/file.parquet'", "source.events: IO Error: No files found"),
        (GOOD + ", 'dear' AS amount", "source.events: Conversion Error: Could not convert string 'dear' to DOUBLE"),
        (GOOD + " WHERE false", "source.events: no usable row"),
        (GOOD.replace("'a'", "NULL"), "source.events: no usable row"),
        (
            GOOD.replace("'a'", "'${folder}/a'"),
            "source: the SQL uses an unknown folder 'folder': add it to source.paths",
        ),
    ],
)
def test_bad_events_are_refused_with_their_place_and_the_mend(events: str, message: str) -> None:
    assert refusal(events).startswith(message)


def test_the_name_of_a_missing_column_is_told_whole() -> None:
    assert '"DEADLINE"' in refusal(GOOD.replace("TIMESTAMP '2024-01-01'", "DEADLINE"))


def test_a_query_may_end_in_a_comment() -> None:
    with OfflineStore(Source(events=GOOD + " -- the whole history")) as source:
        assert source.summary.events == 1


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (None, "feature 'age': source.attributes has no column 'age'"),
        ("SELECT 'a' AS customer_id, 1 AS height", "feature 'age': source.attributes has no column 'age'"),
        ("SELECT 'a' AS id, 1 AS age", "source.attributes: column 'customer_id' is missing: select the shop's column"),
        (
            "SELECT 'a' AS customer_id, 'old' AS age",
            "feature 'age': its column is VARCHAR, not a number: convert it in",
        ),
        ("SELECT 'a' AS customer_id, DATE '1980-01-01' AS age", "feature 'age': its column is DATE, not a number"),
        ("SELECT 'a' AS customer_id, now() AS age", "feature 'age': its column is TIMESTAMP WITH TIME ZONE, not a num"),
        (
            "SELECT unnest(['a', 'b', 'a', 'b', 'a']) AS customer_id, 1 AS age",
            "source.attributes: 3 rows repeat a customer_id: select one row per customer",
        ),
        ("SELECT * FROM nowhere", "source.attributes: Catalog Error: Table with name nowhere does not exist"),
        ("SELECT '${folder}' AS customer_id", "source: the SQL uses an unknown folder 'folder'"),
        *(
            pytest.param(f"SELECT 'a' AS customer_id, {value} AS age", "feature 'age': its column is ")
            for value in ("'x'::ENUM('x')", "uuid()", "[1, 2]", "TIME '10:00'", "INTERVAL 1 DAY")
        ),
    ],
)
def test_bad_attributes_are_refused_with_their_place_and_the_mend(attributes: str | None, message: str) -> None:
    assert refusal(attributes=attributes).startswith(message)


def test_attributes_that_no_feature_uses_are_left_alone() -> None:
    source = Source(events=GOOD, attributes="SELECT 'a' AS customer_id, 'Smith' AS surname, 42.0 AS age")
    with OfflineStore(source) as opened:
        assert opened.states(AGE, opened.summary.end).slots.tolist() == [[42.0]]


def test_rows_that_cannot_be_used_are_left_out_and_counted_by_reason() -> None:
    events = f"""
        {GOOD}
        UNION ALL SELECT NULL, TIMESTAMP '2024-01-02', 'purchase'
        UNION ALL SELECT '', TIMESTAMP '2024-01-02', 'purchase'
        UNION ALL SELECT repeat('ü', 129), TIMESTAMP '2024-01-02', 'purchase'
        UNION ALL SELECT 'tab' || chr(9), TIMESTAMP '2024-01-02', 'purchase'
        UNION ALL SELECT 'b', NULL, 'purchase'
        UNION ALL SELECT 'b', TIMESTAMP 'infinity', 'purchase'
        UNION ALL SELECT 'b', TIMESTAMP '2024-01-02', NULL"""
    with OfflineStore(Source(events=events)) as source:
        assert source.summary.events == 1
        assert source.summary.customers == 1
        assert source.summary.end == source.summary.start
        assert source.summary.left_out == {
            "without a usable customer_id": 4,
            "without an event_time": 2,
            "without an event_type": 1,
        }


def test_an_attribute_row_without_a_usable_id_is_left_out() -> None:
    attributes = "SELECT 'a' AS customer_id, 1.0 AS age UNION ALL SELECT NULL, 2.0 UNION ALL SELECT NULL, 3.0"
    with OfflineStore(Source(events=GOOD, attributes=attributes)) as source:
        assert source.states(AGE, source.summary.end).customer_ids.tolist() == ["a"]


def test_ids_that_are_numbers_become_text() -> None:
    with OfflineStore(Source(events=GOOD.replace("'a'", "17"))) as source:
        assert source.states(
            StateLayout([Feature(name="last", aggregate="latest", event="purchase")]), 2e9
        ).customer_ids == ["17"]


def test_files_are_found_in_the_folders_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("customer_id,event_time,event_type\na,2024-01-01 10:00:00,x\n")
    source = Source(events="SELECT * FROM '${data}/events.csv'", paths={"data": str(tmp_path)})
    with OfflineStore(source) as opened:
        assert opened.summary.events == 1
