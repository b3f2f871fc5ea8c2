"""An archive as source says what the same events by SQL say, up to a whole fit; attributes follow the aliases."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest

from feature_store.archive.writer import ArchiveWriter
from feature_store.bundles import bundle
from feature_store.config import Source, load_config
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout
from training.__main__ import cli
from training.config import TrainingConfig

if TYPE_CHECKING:
    from tests.conftest import Call, Shop

# onnx 1.19 with protobuf 6 on skl2onnx's trees; mended in neither yet.
pytestmark = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")

START = 1.7e9
LAYOUT = StateLayout(
    [
        Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
        Feature(name="income", aggregate="attribute"),
    ]
)


def event(customer_id: str, t: float = START, mark: str = "", **ids: str) -> list[Any]:
    return ["e", customer_id, t, "visit", 2.5, None, ids.get("item_id"), "web", ids.get("event_id"), "nice", mark]


def archive(folder: Path, *items: list[Any], attributes: str | None = None) -> Source:
    """One more entry in an archive, as a source."""
    with ArchiveWriter(folder) as opened:
        opened.append([(opened.position + 1, json.dumps(items).encode())])
    return Source(archive=str(folder), attributes=attributes)


def from_archive(shop: Shop) -> Path:
    """The shop's config with its events in an archive, in which every fifth customer has two names."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"SELECT customer_id, ts, event_type, amount, duration_s FROM '{shop.folder}/events.parquet'"
        ).fetchall()
    other = {name: f"visitor of {name}" for name, *_ in rows if int(name[1:]) % 5 == 0}
    entries = []
    for seq, (name, *fields) in enumerate(rows, 1):
        sent = other.get(name, name) if seq % 2 else name
        entries.append([["e", sent, *fields, None, None, None, None, ""]])
        if seq % 1000 == 0:
            entries[-1].append(["e", name, *fields, None, None, None, None, "capped"])
    entries += [[["m", alias, name]] for name, alias in other.items()]
    log = [(seq, json.dumps(items).encode()) for seq, items in enumerate(entries, 1)]
    with ArchiveWriter(shop.folder / "live", rows_per_file=5_000) as opened:
        for first in range(0, len(log), 2_000):
            opened.append(log[first : first + 2_000])
    text = shop.config.read_text()
    return shop.edited((text[text.index("events =") : text.index("attributes =")], 'archive = "live"\n'))


def test_states_of_an_archive_are_those_of_the_same_events_by_sql(shop: Shop) -> None:
    by_sql, live = (load_config(TrainingConfig, str(path)) for path in (shop.config, from_archive(shop)))
    layout = StateLayout(by_sql.feature)
    with OfflineStore(by_sql.source) as item, OfflineStore(live.source) as other:
        assert item.summary == other.summary
        for share in (0.2, 0.7, 1.0):
            as_of = item.summary.start + share * (item.summary.end - item.summary.start)
            expected, result = item.states(layout, as_of), other.states(layout, as_of)
            assert result.customer_ids.tolist() == expected.customer_ids.tolist()
            np.testing.assert_allclose(result.slots, expected.slots, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("quick_fits")
def test_a_fit_from_an_archive_is_that_from_the_same_events_by_sql(shop: Shop, call: Call, tmp_path: Path) -> None:
    shop.change_events("FROM old WHERE customer_id < 'c0200'")
    manifests = []
    for config, registry in ((shop.config, tmp_path / "by SQL"), (from_archive(shop), tmp_path / "models")):
        done = call(cli, "fit", config, "--registry", registry)
        assert done.code == 0, done.err
        manifests.append(bundle.read(registry).manifest)
    expected, result = manifests
    assert result.source == expected.source
    assert result.cutoffs == expected.cutoffs
    assert len(numbers(expected.metrics)) > 10
    assert numbers(result.metrics) == pytest.approx(numbers(expected.metrics), rel=1e-6)


def numbers(metrics: Any) -> list[float]:
    """All numbers in a manifest's metrics, in order."""
    if isinstance(metrics, dict):
        return numbers(list(metrics.values()))
    if isinstance(metrics, list):
        return [number for part in metrics for number in numbers(part)]
    return [metrics] if isinstance(metrics, int | float) else []


def test_marked_events_are_left_out_and_aliases_count_for_their_root(tmp_path: Path) -> None:
    items = [event("a"), event("b"), event("b", mark="capped"), event("c"), ["m", "b", "a"], event("b")]
    with OfflineStore(archive(tmp_path, *items)) as source:
        result = source.connection.execute("SELECT customer_id, count(*) FROM events GROUP BY ALL ORDER BY ALL")
        assert result.fetchall() == [("a", 3), ("c", 1)]
        assert (source.summary.events, source.summary.customers) == (4, 2)


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    items = [event("a"), event("ü" * 129), event(""), event("a", 2.5e11), event("a", 4e9)]
    with OfflineStore(archive(tmp_path, *items)) as source:
        assert source.summary.left_out == {"without a usable customer_id": 2, "in the future": 2}


def test_times_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    times = [1_700_000_000.1234567, 1_700_000_000.1234569]
    with OfflineStore(archive(tmp_path, *(event("a", t) for t in times))) as source:
        assert source.connection.execute("SELECT t FROM events ORDER BY t").fetchall() == [(t,) for t in times]


def test_each_event_of_an_archive_has_an_id_of_its_own(tmp_path: Path) -> None:
    archive(tmp_path, event("a", event_id="mine", item_id="shoe"), event("a"), event("b"))
    with OfflineStore(archive(tmp_path, event("a"))) as opened:
        result = opened.connection.execute("SELECT event_id, item_id FROM read ORDER BY ALL").fetchall()
    assert result == [("mine", "shoe"), ("tm:log:1:1", None), ("tm:log:1:2", None), ("tm:log:2:0", None)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("", (None, None)),
        (", 7 AS event_id, 'shoe' AS item_id, 'fine' AS text", ("7", "shoe")),
        (", 7 AS item_id", (None, "7")),
    ],
)
def test_ids_of_events_by_sql_are_kept_where_there_are_any(
    columns: str, expected: tuple[str | None, str | None]
) -> None:
    query = f"SELECT 'a' AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'visit' AS event_type{columns}"
    with OfflineStore(Source(events=query)) as source:
        assert source.connection.execute("SELECT event_id, item_id FROM read").fetchall() == [expected]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("('a', 5), ('b', 3)", 5.0),
        ("('a', 3), ('b', 5)", 5.0),
        ("('b', 5)", 5.0),
        ("('a', NULL), ('b', 5)", 5.0),
        ("('a', 'nan'::DOUBLE), ('b', -5)", -5.0),
        ("('a', 'inf'::DOUBLE), ('b', 5)", 5.0),
        ("('a', NULL::INTEGER), ('b', NULL)", math.nan),
        ("('a', true), ('b', false)", 1.0),
        ("('c', 5)", math.nan),
    ],
)
def test_attributes_of_an_alias_are_its_roots_the_larger_and_missing_loses(
    tmp_path: Path, known: str, expected: float
) -> None:
    attributes = (
        "SELECT customer_id, income, 'x' AS alias, 'y' AS root, [1] AS \"o\"\"dd\" "
        f"FROM (VALUES {known}) AS t (customer_id, income)"
    )
    with OfflineStore(archive(tmp_path, event("a"), event("b"), ["m", "b", "a"], attributes=attributes)) as opened:
        result = opened.states(LAYOUT, opened.summary.end)
    assert result.customer_ids.tolist() == (["a", "c"] if "'c'" in known else ["a"])
    np.testing.assert_array_equal(result.slots[0], [2.0, expected])


def test_ids_that_are_numbers_have_aliases_too(tmp_path: Path) -> None:
    attributes = "SELECT unnest([1, 2, 3]) AS customer_id, unnest([10, 20, 30]) AS income"
    with OfflineStore(archive(tmp_path, event("1"), ["m", "2", "1"], attributes=attributes)) as opened:
        result = opened.states(LAYOUT, opened.summary.end)
    assert result.customer_ids.tolist() == ["1", "3"]
    assert result.slots[:, 1].tolist() == [20.0, 30.0]


def test_two_rows_of_one_id_are_refused_as_ever(tmp_path: Path) -> None:
    attributes = "SELECT unnest(['b', 'b']) AS customer_id, 1 AS income"
    with pytest.raises(InputError, match="1 rows repeat a customer_id"):
        OfflineStore(archive(tmp_path, event("a"), ["m", "b", "a"], attributes=attributes))


def refusal(source: Source) -> str:
    with pytest.raises(InputError) as refused:
        OfflineStore(source)
    return str(refused.value)


def test_an_archive_without_events_is_refused_with_the_mend(tmp_path: Path) -> None:
    assert "none holds no archive: name the folder that live events" in refusal(Source(archive=str(tmp_path / "none")))
    assert "holds no archive" in refusal(Source(archive=str(tmp_path)))
    assert "live holds no event yet: archive events first" in refusal(archive(tmp_path / "live", ["m", "b", "a"]))
    only_capped = archive(tmp_path / "live", event("a", mark="capped"))
    assert refusal(only_capped).startswith("source.archive: no usable row")


def test_a_fit_without_its_archive_ends_in_one_line(shop: Shop, call: Call, tmp_path: Path) -> None:
    shop.change_events("FROM old LIMIT 100")
    config = from_archive(shop)
    shutil.rmtree(shop.folder / "live")
    done = call(cli, "fit", config, "--registry", tmp_path / "models")
    assert done.is_bad_input
    assert "live holds no archive" in done.err
    assert not (tmp_path / "models").exists()
