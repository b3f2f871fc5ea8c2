"""``python -m training init``: a file or a SELECT in, a config out that parses and reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pytest

from feature_store.config import load_config
from feature_store.offline.source import read_attributes
from feature_store.offline.store import OfflineStore
from tests.conftest import write_shop
from training.__main__ import cli
from training.config import TrainingConfig

if TYPE_CHECKING:
    from tests.conftest import Call, Outcome, Run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

SHOP = """SELECT printf('%05d', 1 + (hash(i) % 300)::INTEGER) AS customer,
    TIMESTAMP '2023-01-01' + to_minutes(i * 210) AS sold,
    20 + i % 9 AS total, i AS order_id FROM range(3000) AS rows(i)"""


def write(path: Path, query: str, options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{str(path).replace(chr(39), chr(39) * 2)}' ({options})")
    return path


def read(config: Path) -> tuple[TrainingConfig, list[tuple[object, ...]]]:
    """The config, and what it reads: rows, customers, first id, first and last time, sum of amounts."""
    settings = load_config(TrainingConfig, str(config))
    with OfflineStore(settings.source) as store:
        query = (
            "SELECT count(*), count(DISTINCT customer_id), min(customer_id), min(t), max(t), sum(amount) FROM events"
        )
        return settings, store.connection.execute(query).fetchall()


EXPECTED = [(3000, 300, "00001", 1672531200.0, 1672531200.0 + 2999 * 12600, sum(20.0 + i % 9 for i in range(3000)))]


@pytest.mark.parametrize(
    ("name", "query", "options"),
    [
        ("orders.csv", SHOP, "FORMAT csv"),
        ("orders.csv", SHOP, "FORMAT csv, DELIMITER ';'"),
        ("orders.tsv", SHOP, "FORMAT csv, DELIMITER '\t'"),
        ("o.txt", f"SELECT * REPLACE (strftime(sold, '%d.%m.%Y %H:%M:%S') AS sold) FROM ({SHOP})",
         "FORMAT csv, DELIMITER '|'"),
        ("orders.csv", f"SELECT * REPLACE (strftime(sold, '%m/%d/%Y %H:%M') AS sold) FROM ({SHOP})", "FORMAT csv"),
        ("orders.csv", f"SELECT * REPLACE (replace(total || ',00', '.', '') AS total) FROM ({SHOP})",
         "FORMAT csv, DELIMITER ';'"),
        ("orders.csv", f"SELECT * REPLACE (strftime(sold, '%Y/%m/%d %H:%M:%S') AS sold) FROM ({SHOP})", "FORMAT csv"),
        ("orders.csv", f"SELECT * REPLACE (epoch_ms(sold) AS sold) FROM ({SHOP})", "FORMAT csv"),
        ("orders.csv.gz", SHOP, "FORMAT csv, COMPRESSION gzip"),
        ("orders.parquet", SHOP, "FORMAT parquet"),
        ("orders.json", SHOP, "FORMAT json"),
        ("orders.json", SHOP, "FORMAT json, ARRAY true"),
        ("orders.ndjson", SHOP, "FORMAT json"),
        ("it's [1] $new.csv", SHOP, "FORMAT csv"),
        ("o'neil [2] $/orders.csv", SHOP, "FORMAT csv"),
        ('say "hi"/orders.parquet', SHOP, "FORMAT parquet"),
        ("o.csv", f'SELECT customer AS "Customer ID", sold AS "Order $ Date", total AS "a ""total""" FROM ({SHOP})',
         "FORMAT csv"),
    ],
)  # fmt: skip
def test_a_file_becomes_a_config_that_reads_all_of_it(
    call: Call, tmp_path: Path, name: str, query: str, options: str
) -> None:
    file = write(tmp_path / name, query, options)
    output = tmp_path / "configs" / "shop.toml"
    output.parent.mkdir()
    done = call(cli, "init", "--events", file, "--output", output)
    assert (done.code, done.out) == (0, ""), done.err
    settings, result = read(output)
    assert result == EXPECTED
    assert settings.churn.event == "purchase"
    assert "3,000 events of 300 customers, 2023-01-01 to 2024-03-13" in done.err


def test_paths_are_relative_to_where_the_config_is_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "orders.csv", SHOP, "FORMAT csv")
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call(cli, "init", "--events", "data/orders.csv", "--output", "configs/shop.toml").code == 0
    assert load_config(TrainingConfig, "configs/shop.toml").source.paths == {"data": "../data"}
    printed = call(cli, "init", "--events", "data/orders.csv")
    assert printed.code == 0
    (tmp_path / "here.toml").write_text(printed.out)
    assert load_config(TrainingConfig, "here.toml").source.paths == {"data": "data"}
    monkeypatch.chdir("/")
    for config in ("configs/shop.toml", "here.toml"):
        assert read(tmp_path / config)[1] == EXPECTED


def test_a_pattern_stands_for_many_files(call: Call, tmp_path: Path) -> None:
    for part in (0, 1):
        write(tmp_path / f"part-{part}.csv", f"FROM ({SHOP}) WHERE order_id % 2 = {part}", "FORMAT csv")
    assert call(cli, "init", "--events", tmp_path / "part-*.csv", "--output", tmp_path / "shop.toml").code == 0
    assert read(tmp_path / "shop.toml")[1] == EXPECTED


def test_sql_is_kept_as_it_is(call: Call, tmp_path: Path) -> None:
    sql = f"{SHOP} WHERE '$' <> 'it''s' -- all of them"
    assert call(cli, "init", "--events", f"{sql};", "--output", tmp_path / "shop.toml").code == 0
    settings, result = read(tmp_path / "shop.toml")
    assert result == EXPECTED
    assert sql in settings.source.sql(settings.source.events or "")


def test_a_file_that_is_not_utf8_is_read(call: Call, tmp_path: Path) -> None:
    rows = [f"{i % 60:03};2023-{1 + i % 12:02}-{1 + i % 28:02};{5 + i % 7};Zürich" for i in range(3000)]
    text = "\n".join(["kunde id;date;amount;town", *rows])
    (tmp_path / "orders.csv").write_bytes(text.replace("kunde id", "customer_id").encode("latin-1"))
    assert call(cli, "init", "--events", tmp_path / "orders.csv", "--output", tmp_path / "shop.toml").code == 0
    assert read(tmp_path / "shop.toml")[1][0][:3] == (3000, 60, "000")


def test_a_shop_of_many_types_and_attributes_goes_through_to_the_audit(call: Call, tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop")
    output = tmp_path / "mine.toml"
    options = ("--events", shop.folder / "events.parquet", "--attributes", shop.folder / "customers.csv")
    done = call(cli, "init", *options, "--output", output)
    assert done.code == 0, done.err
    settings = load_config(TrainingConfig, str(output))
    assert settings.source.paths == {"data": "shop", "customers": "shop"}
    assert (settings.churn.event, settings.churn.horizon_days) == ("purchase", 28)
    assert settings.candidates is not None
    assert "duration_s is duration_s" in done.err
    audited = call(cli, "audit", output)
    assert audited.code == 0
    assert "attributes.income" in audited.out


def test_an_existing_file_is_overwritten_only_with_force(call: Call, tmp_path: Path) -> None:
    output = tmp_path / "shop.toml"
    output.write_text("mine")
    done = call(cli, "init", "--events", SHOP, "--output", output)
    assert done.is_bad_input
    assert done.err == f"error: {output} already exists: name another file, or use --force\n"
    assert output.read_text() == "mine"
    assert call(cli, "init", "--events", SHOP, "--output", output, "--force").code == 0
    assert read(output)[1] == EXPECTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.toml"]
    assert os.stat(output).st_mode & 0o444 == 0o444  # noqa: PTH116


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give either --events (optionally with --attributes) or --snapshot"),
        (("--events", SHOP, "--snapshot", SHOP), "give either --events"),
        (("--events", SHOP, "--label", "churn"), "give either --events"),
        (("--snapshot", SHOP, "--attributes", SHOP), "give either --events"),
        (("--events", "nowhere.csv"), "'nowhere.csv' is neither a file nor SQL beginning with SELECT"),
        (("--events", "FOLDER"), "it is a folder; give its files, such as"),
        (("--events", "sheet.xlsx"), "'sheet.xlsx' is a spreadsheet: save the sheet as CSV"),
        (("--events", "torn.parquet"), "'torn.parquet' cannot be read: "),
        (("--events", "SELECT x FROM nowhere"), "the SQL cannot be read: Catalog Error: Table with name nowhere"),
        (("--events", "SELECT 1 AS a"), "no column can be used as customer_id"),
        (("--events", "SELECT 1 AS customer_id, 20200101 AS date WHERE false"), "no column can be used as"),
        (("--snapshot", "SELECT 1 AS a"), "no column of two values is named like a label"),
        (("--events", SHOP, "--attributes", "SELECT 1 AS customer_id FROM range(2)"), "2 rows"),
        (("--events", SHOP, "--output", "no/such/shop.toml"), "cannot be written: No such file or directory"),
    ],
)
def test_bad_input_of_init_ends_in_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    done = call(cli, "init", *options)
    if told == "2 rows":
        told = "source.attributes: 1 rows repeat a customer_id"
    assert done.is_bad_input, done.err
    assert told in done.err


def test_as_a_separate_process_it_prints_only_the_config(run_module: Run, tmp_path: Path) -> None:
    write(tmp_path / "orders.csv", SHOP, "FORMAT csv")
    done = run_module("training", "init", "--events", "orders.csv")
    assert done.code == 0
    assert "customer_id is customer" in done.err
    (tmp_path / "shop.toml").write_text(done.out)
    assert read(tmp_path / "shop.toml")[1] == EXPECTED


def of_public_data(call: Call, folder: Path, *options: object) -> tuple[Outcome, TrainingConfig]:
    done = call(cli, "init", *options, "--output", folder / "config.toml")
    assert done.code == 0, done.err
    return done, load_config(TrainingConfig, str(folder / "config.toml"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_blank_separated_purchases_without_a_time_of_day(call: Call, tmp_path: Path) -> None:
    done, config = of_public_data(call, tmp_path, "--events", DATA / "cdnow" / "CDNOW_master.txt")
    assert "unsure" not in done.err
    assert "event_time is date (DATE as yyyymmdd)" in done.err
    assert config.churn.horizon_days > 28
    assert read(tmp_path / "config.toml")[1][0][:5] == (69_659, 23_570, "00001", 852_076_800, 899_164_800)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_views_carts_and_transactions_without_amounts(call: Call, tmp_path: Path) -> None:
    done, config = of_public_data(call, tmp_path, "--events", DATA / "retailrocket" / "events.csv")
    assert "purchase: transaction, view: view, cart: addtocart" in done.err
    assert (config.churn.event, config.propensity.event) == ("view", "transaction")
    assert (config.interests.view, config.interests.purchase) == ("view", "transaction")
    assert read(tmp_path / "config.toml")[1][0][5] == 9_551


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize(
    ("file", "columns", "size"),
    [
        ("hillstrom/hillstrom.csv", ("conversion", "spend", ("visit",)), (64_000, 578)),
        ("online_shoppers/online_shoppers_intention.csv", ("revenue", None, ()), (12_330, 1_908)),
    ],
)
def test_tables_of_customers(
    call: Call, tmp_path: Path, file: str, columns: tuple[object, ...], size: tuple[int, int]
) -> None:
    _, config = of_public_data(call, tmp_path, "--snapshot", DATA / file)
    snapshot = config.snapshot
    assert snapshot is not None
    assert (snapshot.label, snapshot.value, snapshot.leave_out) == columns
    assert snapshot.target == "propensity"
    with duckdb.connect() as connection:
        read_attributes(connection, config.source)
        assert connection.execute(f"SELECT count(*), sum({snapshot.label}) FROM attributes").fetchall() == [size]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_a_spreadsheet_is_asked_for_as_csv(call: Call) -> None:
    (sheet,) = (DATA / "ecommerce_churn").glob("*.xlsx")
    done = call(cli, "init", "--snapshot", sheet)
    assert done.is_bad_input
    assert "is a spreadsheet: save the sheet as CSV" in done.err
