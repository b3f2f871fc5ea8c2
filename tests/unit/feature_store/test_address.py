"""URLs of Redis: which are taken, what they mean, and that an error never holds a password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import InputError
from feature_store.online.transport.address import Kind, parse


@pytest.mark.parametrize("url", ["redis://h:1/2", "rediss://u:p@h", "unix:///tmp/redis.sock?db=7", "nonsense"])
def test_a_single_server_is_left_to_the_library(url: str) -> None:
    address = parse(url)
    assert (address.kind, address.url, address.hosts) == (Kind.SERVER, url, ())


def test_sentinels_know_a_master_by_its_name() -> None:
    address = parse("redis+sentinel://shop:s%40fe@one,two:5000,[::1]:5001/main/3?health_check_interval=5")
    assert (address.kind, address.name) == (Kind.SENTINEL, "main")
    assert address.hosts == (("one", 26379), ("two", 5000), ("::1", 5001))
    assert address.at("10.0.0.1", 6379) == "redis://shop:s%40fe@10.0.0.1:6379/3?health_check_interval=5"
    assert address.at("::2", 6379).startswith("redis://shop:s%40fe@[::2]:6379/3")


def test_sentinels_have_a_login_of_their_own_and_not_that_of_the_master() -> None:
    address = parse("rediss+sentinel://:master@one/main?sentinel_password=w%40tch&ssl_cert_reqs=none")
    assert address.sentinel_at("one", 26379) == "rediss://:w%40tch@one:26379"
    assert address.at("h", 1) == "rediss://:master@h:1?ssl_cert_reqs=none"
    assert parse("redis+sentinel://:master@one/main").sentinel_at("one", 1) == "redis://one:1"


def test_a_cluster_has_nodes_and_no_database() -> None:
    address = parse("rediss+cluster://u:p@a:7000,b")
    assert (address.kind, address.hosts) == (Kind.CLUSTER, (("a", 7000), ("b", 6379)))
    assert address.at("c", 7) == "rediss://u:p@c:7"
    assert parse("redis+cluster://a/0").at("c", 7) == "redis://c:7/0"


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        ("redis+sentinel://:secret@one", "/name"),
        ("redis+sentinel://:secret@one/", "/name"),
        ("redis+sentinel://:secret@one/main/db", "/name"),
        ("redis+sentinel://:secret@one:port/main", "/name"),
        ("redis+sentinel://:secret@one:70000/main", "/name"),
        ("redis+sentinel://:secret@one,,two/main", "/name"),
        ("redis+sentinel://:secret@/main", "redis+sentinel://"),
        ("redis+cluster://:secret@one/1", "without a database"),
        ("redis+cluster://:secret@one/main", "without a database"),
        ("redis+clutter://:secret@one", "redis+cluster://"),
        ("http+cluster://:secret@one", "redis+cluster://"),
        ("redis+cluster://:sec@ret@one", "redis+cluster://"),
    ],
)
def test_a_bad_url_is_refused_in_one_line_that_names_the_mend(url: str, mend: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(url)
    message = str(refused.value)
    assert mend in message
    assert "secret" not in message
    assert "ret@" not in message
    assert "\n" not in message


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused_and_never_shown(text: str) -> None:
    try:
        shown = repr(parse(f"redis+sentinel://:p4ssw0rd@{text}"))
    except InputError as error:
        shown = str(error)
    assert "p4ssw0rd" not in shown
