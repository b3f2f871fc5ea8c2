"""``python -m service.tokens`` makes a token that nobody can guess and an entry that a server takes."""

from __future__ import annotations

import hashlib
import math
import re
import time
from pathlib import Path

from service.auth.callers import CallersFile
from service.tokens import cli
from tests.conftest import Call


def token_of(err: str) -> str:
    (token,) = re.findall(r"tidemark_[\w-]{43}", err)
    return str(token)


def test_entries_put_one_after_another_are_a_file_of_callers(call: Call) -> None:
    made = [
        call(cli, "new", "checkout", "--scopes", "score, events", "--quota", "1234567.5", "--burst", 10, "--days", 30),
        call(cli, "new", "team/b@shop", "--scopes", "customers"),
    ]
    assert [done.code for done in made] == [0, 0]
    tokens = [token_of(done.err) for done in made]
    assert tokens[0] != tokens[1]
    text = "".join(done.out for done in made)
    assert not any(token in text for token in tokens)
    callers = CallersFile(Path("callers.toml")).load(text.encode()).by_hash
    first, second = (callers[hashlib.sha256(token.encode()).digest()] for token in tokens)
    assert (first.name, set(first.scopes)) == ("checkout", {"score", "events"})
    assert abs(first.expires - time.time() - 30 * 86_400) < 60
    assert first.bucket is not None
    assert first.bucket.take(10) == 0
    assert (second.name, list(second.scopes), second.expires) == ("team/b@shop", ["customers"], math.inf)
    assert second.bucket is None


def test_bad_input_ends_in_one_line_and_makes_no_token(call: Call) -> None:
    for bad in (
        ["a b", "--scopes", "score"],
        ["a", "--scopes", "scores"],
        ["a", "--scopes", ""],
        ["a", "--scopes", "score", "--quota", "0"],
        ["a", "--scopes", "score", "--quota", "nan"],
        ["a", "--scopes", "score", "--burst", "3"],
        ["a", "--scopes", "score", "--days", "-1"],
        ["a"],
    ):
        done = call(cli, "new", *bad)
        assert done.is_bad_input, bad
        assert done.out == ""
        assert "tidemark_" not in done.err
