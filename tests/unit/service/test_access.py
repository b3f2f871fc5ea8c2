"""Who a caller is and what it may do: the file of callers, tokens, certificates, scopes, and a file that changes."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import InputError
from service.api.scoring import METHODS
from service.auth.access import SCOPES, Access, required_scopes
from service.auth.callers import MAX_REMEMBERED_HEADERS, CallersFile, Scope
from service.errors import Code, Reason, RequestError
from service.file_watch import WatchedFiles
from service.transport.standard_services import SERVICES
from service.transport.tls import certificate_names, names_of_peer

HASH = "a" * 64
GOOD = f'[[caller]]\nname = "shop"\nscopes = ["score"]\nsha256 = "{HASH}"\n'


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def entry(name: str, token: str = "", **more: object) -> dict[str, object]:
    made = {"name": name, "scopes": ["score"], **more}
    return made | ({"sha256": sha256(token)} if token else {})


class File:
    """A file of callers, and the access that goes by it."""

    def __init__(self, folder: Path, *entries: dict[str, object], now: float = 0.0) -> None:
        self.path = folder / "callers.json"
        self.now = now
        self.write(*entries)
        file = CallersFile(self.path)
        self.watched = WatchedFiles("callers", [self.path], lambda contents: file.load(contents[0]))
        self.access = Access(self.watched, lambda: self.now)

    def write(self, *entries: dict[str, object]) -> None:
        self.path.write_text(json.dumps({"caller": list(entries)}))

    def who(self, authorization: str | None, *names: str) -> str:
        """Name of the caller, or why there is none."""
        try:
            return self.access.caller(None if authorization is None else authorization.encode(), names).name
        except RequestError as error:
            return error.reason.value


# --- the file -------------------------------------------------------------------------------------------------------


def load(text: str, name: str = "callers.toml") -> dict[str, set[str]]:
    callers = CallersFile(Path(name)).load(text.encode())
    return {caller.name: set(caller.scopes) for caller in [*callers.by_hash.values(), *callers.by_certificate.values()]}


def test_toml_and_json_say_the_same() -> None:
    as_json = json.dumps({"caller": [{"name": "shop", "scopes": ["score"], "sha256": HASH}]})
    assert load(GOOD) == load(as_json, "callers.json") == {"shop": {"score"}}


def test_a_caller_is_identified_by_a_token_or_by_a_certificate() -> None:
    certificate = '[[caller]]\nname = "nightly"\ncertificate = "nightly.shop.internal"\nscopes = ["customers"]\n'
    assert load(f"{GOOD}\n{certificate}") == {"shop": {"score"}, "nightly": {"customers"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "caller: Field required"),
        ("caller = []", "caller: List should have at least 1"),
        (GOOD[:-30], "not valid TOML"),
        ("\x00", "not valid TOML"),
        ("a = " + "[" * 10_000, "not valid TOML"),
        (GOOD.replace(HASH, "tidemark_secret"), "sha256"),
        (GOOD.replace(HASH, HASH.upper()), "sha256"),
        (GOOD.replace(HASH, HASH + "\\n"), "sha256"),
        (GOOD.replace('"score"', '"scores"'), "scopes"),
        (GOOD.replace('"score"', ""), "scopes"),
        (GOOD.replace('"shop"', '"a shop\\n"'), "name"),
        (GOOD + "quta = 3\n", "quta"),
        (GOOD + "quota = 0\n", "quota"),
        (GOOD + "quota = inf\n", "quota"),
        (GOOD + "quota = nan\n", "quota"),
        (GOOD + "burst = 3\n", "burst is given without quota"),
        (GOOD + "expires = 2030-01-01T00:00:00\n", "expires"),
        (GOOD + GOOD, "name"),
        (GOOD + GOOD.replace("shop", "other"), "sha256"),
        ('[[caller]]\nname = "shop"\nscopes = ["score"]\n', "neither sha256 nor certificate"),
        ('[[caller]]\nname = "shop"\nscopes = ["score"]\nsha256 = []\n', "neither sha256 nor certificate"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_without_what_it_holds(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^callers\.toml: ") as caught:
        load(text)
    assert said in str(caught.value)
    assert HASH not in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_it_is_read_or_refused(content: bytes) -> None:
    for name in ("callers.toml", "callers.json"):
        with pytest.raises(InputError):
            CallersFile(Path(name)).load(content)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError, match="not valid TOML"):
        CallersFile(Path("callers.toml")).load(b"\xff" + GOOD.encode())


def test_a_quota_is_shared_out_among_workers_and_a_burst_is_a_seconds_unless_it_is_given() -> None:
    for more, workers, at_once in (("quota = 40", 1, 40), ("quota = 40", 4, 10), ("quota = 40\nburst = 100", 4, 25)):
        file = CallersFile(Path("callers.toml"), workers)
        (caller,) = file.load((GOOD + more).encode()).by_hash.values()
        assert caller.bucket is not None
        assert caller.bucket.take(at_once) == 0
        assert caller.bucket.take(1) == pytest.approx(1 / (40 / workers), rel=0.05)


# --- tokens and certificates ----------------------------------------------------------------------------------------


def test_a_caller_is_known_by_each_of_its_tokens(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", "one"), entry("b", sha256=[sha256("old"), sha256("new")]))
    reported = [
        file.who(f"{scheme} {token}") for scheme in ("Bearer", "bearer") for token in ("one", "old", "new", "one")
    ]
    assert reported == ["a", "b", "b", "a"] * 2


@pytest.mark.parametrize(
    "sent", ["Bearer two", "Bearer", "", "Bearer ", "Basic one", "one", "Bearer  one", "Bearer one "]
)
def test_what_is_no_token_of_anybody_is_refused(tmp_path: Path, sent: str) -> None:
    assert File(tmp_path, entry("a", "one")).who(sent) == "CREDENTIALS_INVALID"


def test_who_shows_nothing_is_told_so(tmp_path: Path) -> None:
    assert File(tmp_path, entry("a", "one")).who(None) == "CREDENTIALS_MISSING"


def test_a_certificate_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", certificate="jobs.example"), entry("b", "one", certificate="spiffe://shop/b"))
    assert file.who(None, "other", "jobs.example") == "a"
    assert file.who(None, "spiffe://shop/b") == file.who("Bearer one") == "b"
    assert file.who(None, "JOBS.example") == "CREDENTIALS_INVALID"


def test_a_token_goes_before_a_certificate_be_it_good_or_bad(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", "one"), entry("b", certificate="b"))
    assert file.who("Bearer one", "b") == "a"
    assert file.who("Bearer two", "b") == "CREDENTIALS_INVALID"


def test_an_expired_token_is_refused_in_the_words_for_one_that_never_was(tmp_path: Path) -> None:
    expires = "2030-01-01T00:00:00Z"
    file = File(tmp_path, entry("a", "one", expires=expires), entry("b", certificate="b", expires=expires))
    assert (file.who("Bearer one"), file.who(None, "b")) == ("a", "b")
    file.now = 1_893_456_000.0
    for shown in (b"Bearer one", b"Bearer two", b"Bearer one"):
        with pytest.raises(RequestError) as caught:
            file.access.caller(shown, ())
        assert caught.value.code is Code.UNAUTHENTICATED
        assert caught.value.message == "the token is unknown or has expired: ask for another one"
        assert file.watched.value.remembered == {}  # so it takes as long as well
    assert file.who(None, "b") == "CREDENTIALS_INVALID"


def test_what_is_remembered_of_headers_is_bounded(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", "one"))
    for length in range(1, 30_000, 2):
        file.who("Bearer " + "x" * (length % 1000))
    assert file.watched.value.remembered == {}
    for number in range(MAX_REMEMBERED_HEADERS):
        file.watched.value.remembered[b"%d" % number] = file.watched.value.of_header(b"Bearer one")  # type: ignore[assignment]
    assert file.who("bEARER one") == "a"
    assert len(file.watched.value.remembered) == 1


def test_refusals_are_counted(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", "one"))
    for sent in (None, "Bearer two", "Bearer two", "Bearer one"):
        file.who(sent)
    assert file.access.refused == {Reason.CREDENTIALS_MISSING: 1, Reason.CREDENTIALS_INVALID: 2}


def test_both_transports_read_the_same_names_from_a_certificate() -> None:
    reported = {
        "subject": ((("organizationName", "Shop"),), (("commonName", "jobs"),), (("commonName", "second"),)),
        "subjectAltName": (("DNS", "jobs.example"), ("URI", "spiffe://shop/jobs"), ("IP Address", "10.0.0.1")),
    }
    peer = {
        "x509_common_name": [b"jobs"],
        "x509_subject_alternative_name": [b"jobs.example", b"spiffe://shop/jobs", b"10.0.0.1"],
        "x509_pem_cert": [b"PEM"],
    }
    assert (
        certificate_names(reported) == names_of_peer(peer) == ("jobs", "jobs.example", "spiffe://shop/jobs", "10.0.0.1")
    )
    assert certificate_names({}) == names_of_peer({}) == ()


# --- scopes ---------------------------------------------------------------------------------------------------------


def test_every_service_requires_a_scope() -> None:
    assert set(SCOPES) == set(SERVICES)
    assert sorted(SCOPES.values()) == sorted(get_args(Scope))
    paths = [f"/{service}/Do" for service in SERVICES]
    assert required_scopes(paths) == dict(zip(paths, [SCOPES[service] for service in SERVICES], strict=True))
    assert set(required_scopes(METHODS).values()) == {"score"}


def test_a_service_without_a_scope_is_not_served_by_mistake() -> None:
    with pytest.raises(KeyError):
        required_scopes(["/tidemark.v1.NewService/Do"])


@pytest.mark.parametrize("granted", get_args(Scope))
def test_a_caller_reaches_the_methods_of_its_scopes_and_no_others(tmp_path: Path, granted: Scope) -> None:
    access = File(tmp_path, entry("a", "one", scopes=[granted])).access
    for scope in get_args(Scope):
        if scope == granted:
            assert access.authorize(b"Bearer one", (), scope).name == "a"
        else:
            with pytest.raises(RequestError, match=f"scope {scope}") as caught:
                access.authorize(b"Bearer one", (), scope)
            assert caught.value.reason is Reason.SCOPE_MISSING
            assert caught.value.code is Code.PERMISSION_DENIED
    assert access.refused == {Reason.SCOPE_MISSING: 3}


# --- a file that changes --------------------------------------------------------------------------------------------


def test_a_renewed_file_counts_at_once_and_takes_nothing_back(tmp_path: Path) -> None:
    file = File(tmp_path, entry("a", "one", quota=10), entry("b", "two"))
    assert file.access.authorize(b"Bearer one", (), "score")
    bucket = file.access.caller(b"Bearer one", ()).bucket
    assert bucket is not None
    file.write(entry("a", "new", quota=10, scopes=["events"]), entry("c", "three", quota=10))
    file.watched.look()
    assert [file.who(f"Bearer {token}") for token in ("one", "two", "new", "three")] == [
        "CREDENTIALS_INVALID",
        "CREDENTIALS_INVALID",
        "a",
        "c",
    ]
    assert file.access.authorize(b"Bearer new", (), "events").name == "a"
    with pytest.raises(RequestError):
        file.access.authorize(b"Bearer new", (), "score")
    assert file.access.caller(b"Bearer new", ()).bucket is bucket  # what was used stays used
    assert file.access.caller(b"Bearer three", ()).bucket is not bucket


def test_a_bad_file_changes_nothing_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = File(tmp_path, entry("a", "one"))
    caplog.set_level(logging.INFO, "tidemark")
    for bad in ("", "{", '{"caller": []}', None):
        if bad is None:
            file.path.unlink()
        else:
            file.path.write_text(bad)
        caplog.clear()
        for _ in range(3):
            file.watched.look()
        assert len(caplog.records) == 1
        assert "the old ones stay in use" in caplog.text
        assert file.who("Bearer one") == "a"
    file.write(entry("b", "two"))
    caplog.clear()
    file.watched.look()
    file.watched.look()
    assert [record.getMessage() for record in caplog.records] == ["callers: renewed"]
    assert (file.who("Bearer one"), file.who("Bearer two")) == ("CREDENTIALS_INVALID", "b")


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("first")

    def load(contents: tuple[bytes, ...]) -> bytes:
        if contents[0] == b"second":
            path.write_text("third")
        return contents[0]

    watched = WatchedFiles("it", [path], load)
    path.write_text("second")
    watched.look()
    assert watched.value == b"first"
    watched.look()
    assert watched.value == b"third"


def test_an_error_that_nobody_thought_of_does_not_end_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = WatchedFiles("it", [path], lambda contents: 1 / int(contents[0]))
    path.write_text("0")
    watched.look()
    assert watched.value == 1
    path.write_text("4")
    watched.look()
    assert watched.value == 0.25


def test_a_file_that_is_bad_or_absent_at_the_start_is_an_input_error(tmp_path: Path) -> None:
    file = CallersFile(tmp_path / "callers.toml")
    with pytest.raises(InputError, match=r"callers\.toml: No such file"):
        WatchedFiles("callers", [tmp_path / "callers.toml"], lambda contents: file.load(contents[0]))
