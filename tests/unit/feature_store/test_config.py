"""What the feature store reads of a config: bad ones are named by file, key and mend, in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from feature_store.config import FeatureConfig, Source, parse_config
from feature_store.errors import InputError

CONFIG = """
[source]
events = "SELECT 1"

[[feature]]
name = "visits"
event = "visit"
aggregate = "count"
half_life_days = 7
"""


def parse(text: str) -> FeatureConfig:
    return parse_config(FeatureConfig, tomllib.loads(text), Path("/shops/corner.toml"))


def test_sections_of_others_are_left_to_them() -> None:
    assert [feature.name for feature in parse(CONFIG + "\n[churn]\nevent = 'visit'\n").feature] == ["visits"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[source]", "[sauce]", "corner.toml: source: Field required"),
        ("events =", "event =", "corner.toml: source.event: Extra inputs are not permitted"),
        (
            "events =",
            "paths = {} #",
            "corner.toml: source: give either 'events' (SQL) or 'archive' (a folder)",
        ),
        (
            '"SELECT 1"',
            '"SELECT 1"\narchive = "live"',
            "corner.toml: source: give either 'events' (SQL) or 'archive' (a folder)",
        ),
        ('events = "SELECT 1"', 'archive = ""', "corner.toml: source.archive: String should have at least 1 character"),
        ('"SELECT 1"', '"SELECT 1"\nattribute = "SELECT 2"', "corner.toml: source.attribute: Extra inputs"),
        ("[[feature]]", "[[features]]", "corner.toml: feature: give [[feature]] sections"),
        ("half_life_days = 7", "", "corner.toml: feature.0: aggregate 'count' needs 'half_life_days'"),
        ("half_life_days = 7", "half_life_days = -7", "corner.toml: feature.0.half_life_days: Input should be greater"),
        ("half_life_days = 7", "halflife = 7", "corner.toml: feature.0.halflife: Extra inputs"),
        ('"count"', '"mean"', "corner.toml: feature.0.aggregate: Input should be 'count', 'sum'"),
        (
            "half_life_days = 7",
            "half_life_days = 7\n[[feature]]\nname = 'visits'\nevent = 'visit'\naggregate = 'latest'",
            "corner.toml: feature 'visits' is defined twice: give one of them another name",
        ),
    ],
)
def test_a_bad_config_is_named_by_file_key_and_mend_in_one_line(old: str, new: str, message: str) -> None:
    assert old in CONFIG
    with pytest.raises(InputError) as refused:
        parse(CONFIG.replace(old, new))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_config_without_features_is_refused() -> None:
    with pytest.raises(InputError, match=r"corner.toml: feature: give .*feature.* sections"):
        parse("feature = []\n[source]\nevents = 'SELECT 1'")


def test_folders_are_relative_to_the_config() -> None:
    config = parse(CONFIG.replace("[source]", '[source]\npaths = { data = "../data", here = "." }'))
    assert config.source.sql("'${data}/a.csv', '${here}/b.csv'") == "'/data/a.csv', '/shops/b.csv'"


def test_the_archive_is_relative_to_the_config() -> None:
    source = parse(CONFIG.replace('events = "SELECT 1"', 'archive = "../live"')).source
    assert source.archive is not None
    assert source.folder("archive", source.archive) == Path("/live")


def test_an_absolute_folder_stays() -> None:
    source = Source(events="", paths={"data": "/var/data"})
    assert source.sql("FROM '${data}/a.csv'") == "FROM '/var/data/a.csv'"


def test_a_folder_may_lie_in_a_python_package() -> None:
    source = Source(events="", paths={"built_in": "package:feature_store/configs"})
    assert source.sql("${built_in}").endswith("/feature_store/configs")


def test_a_package_that_is_not_installed_is_named() -> None:
    source = Source(events="", paths={"data": "package:no_such_package/data"})
    with pytest.raises(InputError, match=r"source.paths.data: Python package 'no_such_package' is not installed"):
        source.sql("${data}")


@pytest.mark.parametrize("query", ["SELECT '${nope}'", "SELECT '$1'", "SELECT '$'"])
def test_an_unknown_folder_or_a_lone_dollar_sign_is_named_with_the_mend(query: str) -> None:
    with pytest.raises(InputError, match=r"source: .* add it to source.paths, or write \$\$ for a dollar sign"):
        Source(events="", paths={"data": "."}).sql(query)


def test_two_dollar_signs_are_one() -> None:
    assert Source(events="").sql("regexp_matches(id, 'x$$')") == "regexp_matches(id, 'x$')"
