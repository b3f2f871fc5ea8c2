"""What entries of the log say, what they must look like, and what an error tells of one: where it is, never what."""

from __future__ import annotations

import json
from typing import Any

import pytest

from feature_store.archive.replay import Aliases, replay
from feature_store.errors import InputError

EVENT = ["e", "ann", 1.7e9, "purchase", 9.5, None, "shoe", "web", "e1", "great", ""]


def changed(at: int, value: Any) -> list[Any]:
    return [*EVENT[:at], value, *EVENT[at + 1 :]]


def entry(*items: Any) -> bytes:
    return json.dumps(items).encode()


def test_an_event_becomes_a_row_under_its_entry_and_its_index() -> None:
    result = replay([(7, entry(EVENT)), (9, entry(["m", "bob", "ann"], changed(3, "view")))], Aliases({}))
    assert [row.values for row in result.rows] == [(7, 0, *EVENT[1:]), (9, 1, *changed(3, "view")[1:])]
    assert not result.erased


def test_whole_numbers_become_floats() -> None:
    (row,) = replay([(1, entry([*changed(2, 1700000000)[:4], 5, 3, *EVENT[6:]]))], Aliases({})).rows
    event = row.event
    assert [type(number) for number in (event.t, event.amount, event.duration_s)] == [float, float, float]


def test_an_erasure_takes_what_came_before_it_and_leaves_what_comes_after() -> None:
    bob = changed(1, "bob")
    result = replay(
        [(1, entry(EVENT, bob)), (2, entry(EVENT, ["d", ["ann", "cleo"]], EVENT)), (3, entry(EVENT))], Aliases({})
    )
    assert [row.values[:3] for row in result.rows] == [(1, 1, "bob"), (2, 2, "ann"), (3, 0, "ann")]
    assert result.erased == {"ann", "cleo"}


def test_aliases_of_aliases_point_to_the_root() -> None:
    aliases = Aliases({"a": "b"})
    replay([(1, entry(["m", "b", "c"], ["m", "x", "c"], ["m", "c", "d"]))], aliases)
    assert aliases.roots == dict.fromkeys("abcx", "d")
    assert aliases.changed


def test_an_erasure_forgets_every_alias_in_which_the_id_stands() -> None:
    aliases = Aliases({"a": "r", "b": "r", "x": "y"})
    replay([(1, entry(["d", ["a", "y"]]))], aliases)
    assert aliases.roots == {"b": "r"}
    replay([(2, entry(["m", "r", "a"]))], aliases)
    assert aliases.roots == {"b": "a", "r": "a"}


def test_what_is_said_twice_or_concerns_nobody_changes_no_alias() -> None:
    aliases = Aliases({"a": "b"})
    replay([(1, entry(["m", "a", "b"], ["d", ["nobody"]]))], aliases)
    assert aliases.roots == {"a": "b"}
    assert not aliases.changed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"secret",
        b'[["e", "secret"',
        b'"secret"',
        b'{"secret": 1}',
        b'["secret"]',
        b"[[]]",
        b"\xff\xfe\xfd",
        b'[["d", ["\xe9secret"]]]',
        pytest.param(b"[" * 100_000, id="nested too deep"),
        b'[["d", ["\\ud800secret"]]]',
        entry(["x", "secret"]),
        entry(["m", "secret"]),
        entry(["m", "secret", 5]),
        entry(["m", "secret", "secret"]),
        entry(["m", "b", "secret"]),
        entry(["m", "secret", "b"]),
        entry(["m", "root", "a secret"], ["m", "a secret", "root"]),
        entry(["d", "secret"]),
        entry(["d", ["secret", 5]]),
        entry(EVENT[:-1]),
        entry([*EVENT, "secret"]),
        *(entry(changed(at, None)) for at in (1, 2, 3, 10)),
        *(entry(changed(at, ["secret"])) for at in range(11)),
        *(entry(changed(at, value)) for at in (2, 4, 5) for value in (True, "secret", float("inf"), float("nan"))),
        *(entry(changed(at, 10**400)) for at in (2, 4)),
        entry(changed(2, 1e12)),
        entry(changed(2, -1e12)),
        entry(changed(4, 0)).replace(b" 0,", b" 1e999,"),
        *(entry(changed(at, 5)) for at in (1, 3, 6, 7, 8, 9, 10)),
        entry(changed(1, "\udc00secret")),
    ],
)
def test_a_malformed_entry_is_named_and_not_told(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^entry 42 of the log is malformed: ") as refused:
        replay([(41, entry(EVENT)), (42, data)], Aliases({"secret": "r"}))
    for content in ("secret", "ann", "shoe", "\\x"):
        assert content not in str(refused.value)
    # A stack trace would show the cause, and that the entry.
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
