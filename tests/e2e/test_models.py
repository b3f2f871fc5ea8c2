"""Models change while serving: published, refused, gone back to, tried out, with states of their own."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import redis

from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles import bundle
from feature_store.bundles.registry import ROLLOUT_FILE, SERVING
from feature_store.online.keys import ACTIVE_LAYOUTS, Keys, profile_keys
from service.scoring.model_router import drawn
from tests.conftest import Call, Outcome, Shop
from tests.e2e.conftest import refused
from tests.e2e.live import Live, Start, calling, event, someone, starter, told_of
from tests.e2e.models import HALF_LIFE, OTHER_HALF_LIFE, Models, republished, with_other_features
from tests.e2e.server_process import ServerProcess
from tests.waiting import until

KNOWN = [f"c{number:04}" for number in range(300)]
QUICK = ("--registry-interval-s", "0.05")


@dataclass
class Served:
    """A registry of its own, loaded Redis, a server on both, and calls to it."""

    registry: Path
    url: str
    live: Live
    models: Models
    first: str

    def answering(self) -> str:
        """The version that answers."""
        return str(self.live.score(KNOWN[0]).model_version)

    def versions(self, ids: list[str]) -> list[str]:
        """The versions that answer a batch."""
        return [result.score.model_version for result in self.live.score_many(*ids)]


def load(call: Call, shop: Shop, registry: Path, url: str, *options: object, config: Path | None = None) -> Outcome:
    command = ["load", config or shop.config, "--registry", registry, "--redis", url, "--shift-to-now", *options]
    done = call(feature_store_cli, *command)
    assert done.code == 0, done.err
    return done


@pytest.fixture
def start(registry: Path, clean_redis: str, call: Call, shop: Shop, tmp_path: Path) -> Iterator[Start]:
    load(call, shop, registry, clean_redis)
    with ExitStack() as stack:
        yield starter(stack, registry, tmp_path, clean_redis)


@contextmanager
def served_by(server: ServerProcess, registry: Path, url: str) -> Iterator[Served]:
    with calling(server.target) as live:
        models = Models(live.channel)
        yield Served(registry, url, live, models, str(models.serving().version))


@pytest.fixture
def served(start: Start, registry: Path, clean_redis: str) -> Iterator[Served]:
    with served_by(start(*QUICK), registry, clean_redis) as result:
        yield result


def test_a_published_bundle_takes_over_without_a_failed_call_and_every_answer_names_its_model(served: Served) -> None:
    versions: set[str] = set()
    ended = threading.Event()

    def call_on() -> None:
        while not ended.is_set():
            versions.update(served.versions(KNOWN[:3]))
            versions.add(served.answering())

    caller = threading.Thread(target=call_on)
    caller.start()
    try:
        later = republished(served.registry)
        until(lambda: served.answering() == later)
        last = republished(served.registry)
        until(lambda: served.answering() == last)
    finally:
        ended.set()
        caller.join()
    assert versions == {served.first, later, last}
    assert {served.models.state(version) for version in (served.first, later)} == {"AVAILABLE"}
    reported = served.models.serving()
    assert (reported.version, served.models.state(last)) == (last, "SERVING")
    manifest = bundle.read(served.registry).manifest
    assert (reported.fingerprint, reported.create_time.ToJsonString()[:19]) == (
        manifest.fingerprint,
        manifest.created[:19],
    )
    assert served.models.listed()[last].churn_auc == manifest.metrics["churn_auc"]
    assert reported.activate_time.seconds > reported.create_time.seconds
    assert not reported.HasField("refusal")
    assert not reported.HasField("rollout")


def tear(folder: Path) -> None:
    model = folder / bundle.MODEL_FILE
    model.write_bytes(model.read_bytes()[:-100])


def tamper(folder: Path) -> None:
    """Another graph, with the manifest's hashes put right: only the golden rows tell."""
    result = json.loads((folder / bundle.MANIFEST_FILE).read_text())
    changed = (folder / bundle.MODEL_FILE).read_bytes().replace(b"propensity", b"propensitz")
    (folder / bundle.MODEL_FILE).write_bytes(changed)
    result["model_sha256"] = bundle.sha256(changed)
    result[bundle.MANIFEST_HASH] = bundle.manifest_hash(result)
    (folder / bundle.MANIFEST_FILE).write_text(json.dumps(result))


def misname(folder: Path) -> None:
    result = json.loads((folder / bundle.MANIFEST_FILE).read_text())
    result["features"][0]["name"] = "something_else"
    (folder / bundle.MANIFEST_FILE).write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(tear, "damaged or was changed"), (tamper, "golden rows"), (misname, "fingerprint")],
)
def test_a_bundle_that_must_not_be_served_is_refused_with_the_reason_and_the_old_one_goes_on(
    served: Served, damage: object, reason: str
) -> None:
    bad = republished(served.registry, activate=False)
    whole = Path(shutil.copytree(served.registry / bad, served.registry.parent / "whole"))
    assert callable(damage)
    damage(served.registry / bad)
    bundle.set_link(served.registry, bundle.CURRENT, bad)
    until(lambda: served.models.serving().refusal.version == bad)
    assert served.models.state(bad) == "REFUSED"
    assert reason in served.models.listed()[bad].message
    reported = served.models.serving()
    assert (reported.version, reported.refusal.version) == (served.first, bad)
    assert reason in reported.refusal.message
    assert served.answering() == served.first
    for path in whole.iterdir():
        shutil.copy(path, served.registry / bad)
    until(lambda: served.answering() == bad)
    assert (served.models.state(bad), served.models.listed()[bad].message) == ("SERVING", "")


def test_one_call_goes_back_and_a_refused_one_changes_nothing(served: Served) -> None:
    later = republished(served.registry)
    until(lambda: served.answering() == later)
    activated = served.models.activate(served.first)
    assert (activated.version, served.answering()) == (served.first, served.first)
    assert activated.activate_time == served.models.serving().activate_time
    torn = republished(served.registry, activate=False)
    tear(served.registry / torn)
    for version, code, reason in (
        (torn, grpc.StatusCode.FAILED_PRECONDITION, "MODEL_REFUSED"),
        ("29990101T999999", grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN"),
        (SERVING, grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "MODEL_VERSION_INVALID"),
        ("../registry", grpc.StatusCode.INVALID_ARGUMENT, "MODEL_VERSION_INVALID"),
    ):
        with refused(code) as status:
            served.models.activate(version)
        assert told_of(status[0]) == (reason, "version")
    assert str((served.registry / bundle.CURRENT).readlink()) == served.first
    assert served.answering() == served.first
    assert served.models.state(torn) == "REFUSED"


def test_a_shadow_answers_nobody_and_tells_how_it_differs(served: Served) -> None:
    dear = dict(bundle.read(served.registry).manifest.economics) | {"churn.contact_cost": 1e6}
    shadow = republished(served.registry, activate=False, economics=dear)
    assert served.models.roll_out(shadow=shadow).shadow.version == shadow
    alerts = [result.score.churn.alert for result in served.live.score_many(*KNOWN, "nobody")]
    assert set(served.versions(KNOWN)) == {served.first}
    until(lambda: served.models.serving().shadow_differences.compared == 2 * len(KNOWN))
    reported = served.models.serving()
    assert (reported.rollout.shadow.version, served.models.state(shadow)) == (shadow, "SHADOW")
    seen = reported.shadow_differences
    assert (seen.unscored, seen.dropped) == (0, 0)
    assert seen.churn.alerts == 2 * sum(alerts) > 0  # the same graph at a price that nobody pays
    assert seen.propensity.alerts == 0
    assert 0 <= seen.churn.mean <= seen.churn.largest < 1e-3
    served.models.clear_rollout()
    assert not served.models.serving().HasField("shadow_differences")


def test_a_canary_answers_its_share_always_the_same_and_a_batch_holds_answers_of_both(served: Served) -> None:
    canary = republished(served.registry, activate=False)
    plain = served.live.score_many(*KNOWN)
    for share in (0.2, 0.6):
        assert served.models.roll_out(canary=canary, share=share).canary.share == share
        wanted = [canary if drawn(customer_id) < share else served.first for customer_id in KNOWN]
        assert wanted.count(canary) in range(int(len(KNOWN) * share * 0.7), int(len(KNOWN) * share * 1.3))
        assert served.versions(KNOWN) == wanted
        assert [served.live.score(customer_id).model_version for customer_id in KNOWN[:40]] == wanted[:40]
    mixed = served.live.score_many(*KNOWN, "nobody", "")
    for item, other in zip(plain, mixed, strict=False):
        assert item.score.customer_id == other.score.customer_id
        assert item.score.churn.probability == pytest.approx(other.score.churn.probability, abs=1e-3)
    reasons = [told_of(result.status)[0] for result in mixed[-2:]]
    assert reasons == ["CUSTOMER_UNKNOWN", "CUSTOMER_ID_INVALID"]
    assert {told_of(mixed[-1].status)[1]} == {"customer_ids"}
    served.models.activate(canary)  # it is tried out no longer: going back does not bring it up again
    assert set(served.versions(KNOWN)) == {canary}
    served.models.activate(served.first)
    assert set(served.versions(KNOWN)) == {served.first}
    assert not served.models.serving().HasField("rollout")


def test_bundles_are_listed_page_by_page_though_one_comes_and_one_goes(served: Served) -> None:
    versions = sorted((republished(served.registry, activate=False) for _ in range(4)), reverse=True)
    everything = [*versions, served.first]
    whole = served.models.page()
    assert [model.version for model in whole.models] == everything
    assert whole.next_page_token == ""
    first = served.models.page(2)
    assert [model.version for model in first.models] == everything[:2]
    shutil.rmtree(served.registry / versions[1])
    newest = republished(served.registry, activate=False)
    second = served.models.page(2, first.next_page_token)
    assert [model.version for model in second.models] == everything[2:4]
    last = served.models.page(2, second.next_page_token)
    assert ([model.version for model in last.models], last.next_page_token) == (everything[4:], "")
    assert served.models.page(10_000).models[0].version == newest
    for size, token, reason, field in (
        (-1, "", "PAGE_SIZE_INVALID", "page_size"),
        (0, "2", "PAGE_TOKEN_INVALID", "page_token"),
        (0, first.next_page_token[:-2], "PAGE_TOKEN_INVALID", "page_token"),
        (0, "bm90aGluZw==", "PAGE_TOKEN_INVALID", "page_token"),
        (0, "\u5ba2", "PAGE_TOKEN_INVALID", "page_token"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as status:
            served.models.page(size, token)
        assert told_of(status[0]) == (reason, field)


def test_an_empty_rollout_is_refused_and_a_rollout_ends_only_when_it_is_cleared(served: Served) -> None:
    canary = republished(served.registry, activate=False)
    assert served.models.roll_out(canary=canary, share=0.5).canary.version == canary
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as status:
        served.models.roll_out()
    assert told_of(status[0]) == ("ROLLOUT_MISSING", "rollout")
    assert served.models.serving().rollout.canary.version == canary
    for _ in range(2):
        served.models.clear_rollout()
        assert not served.models.serving().HasField("rollout")


def test_a_bad_rollout_is_refused_with_the_field_and_changes_nothing(served: Served) -> None:
    canary = republished(served.registry, activate=False)
    for share in (0.0, -0.1, 1.1, float("nan")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as status:
            served.models.roll_out(canary=canary, share=share)
        assert told_of(status[0]) == ("ROLLOUT_SHARE_INVALID", "rollout.canary.share")
    with refused(grpc.StatusCode.NOT_FOUND) as status:
        served.models.roll_out(shadow="29990101T999999")
    assert told_of(status[0]) == ("MODEL_UNKNOWN", "rollout.shadow.version")
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as status:
        served.models.roll_out(canary=served.first, share=0.1)
    assert told_of(status[0]) == ("MODEL_REFUSED", "rollout.canary.version")
    assert not (served.registry / ROLLOUT_FILE).exists()
    assert set(served.versions(KNOWN)) == {served.first}


def test_a_bundle_of_other_features_waits_for_its_states_and_both_are_kept_up_until_one_is_pruned(
    served: Served, call: Call, shop: Shop
) -> None:
    other = with_other_features(served.registry)
    config = shop.edited((HALF_LIFE, OTHER_HALF_LIFE))
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as status:
        served.models.activate(other)
    assert "load its states first" in status[0].message
    bundle.set_link(served.registry, bundle.CURRENT, other)
    until(lambda: served.models.state(other) == "REFUSED")
    early, late, gone = someone("early"), someone("late"), someone("gone")
    served.live.record(event(early, "purchase", amount=10.0), event(gone))
    load(call, shop, served.registry, served.url, "--bundle", other, config=config)
    until(lambda: served.answering() == other)
    served.live.record(event(late, "purchase", amount=20.0))
    served.live.record(event(early, "purchase", amount=5.0))
    served.live.merge(KNOWN[1], KNOWN[2])
    served.live.delete(gone)
    served.models.activate(served.first)
    served.live.record(event(late, "purchase", amount=1.0))
    for version in (served.first, other):
        served.models.activate(version)
        assert [served.live.score(name).model_version for name in (early, late, KNOWN[1])] == [version] * 3
        for name, total in ((early, 15.0), (late, 21.0)):
            assert served.live.feature(name, "spend_56d") == pytest.approx(total, rel=1e-3)
        with refused(grpc.StatusCode.NOT_FOUND):
            served.live.score(gone)
        options = [] if version == served.first else ["--bundle", version]
        command = ["verify", shop.config if version == served.first else config, "--registry", served.registry]
        verified = call(feature_store_cli, *command, "--redis", served.url, *options)
        assert verified.code == 0, verified.out + verified.err

    bundle.set_link(served.registry, SERVING, other)
    pruned = call(feature_store_cli, "prune", "--registry", served.registry, "--redis", served.url)
    assert pruned.code == 0, pruned.err
    fingerprints = [bundle.read(served.registry, name).manifest.fingerprint for name in (served.first, other)]
    assert f"removed  {fingerprints[0]}: " in pruned.out
    assert f"kept     {fingerprints[1]}: bundle {other}" in pruned.out
    served.live.record(event(late, "purchase", amount=4.0))
    assert served.live.feature(late, "spend_56d") == pytest.approx(25.0, rel=1e-3)
    with redis.Redis.from_url(served.url) as connection:
        assert list(connection.hkeys(ACTIVE_LAYOUTS)) == [fingerprints[1].encode()]
        assert not list(connection.scan_iter(Keys(fingerprints[0]).prefix + b"*"))
        assert connection.exists(*profile_keys([early, late])) == 2
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        served.models.activate(served.first)


def test_all_workers_follow_and_a_restart_keeps_it(start: Start, registry: Path, clean_redis: str) -> None:
    server = start(*QUICK, "--workers", "2", wait_for="serving on")

    def everywhere(count: int = 12) -> set[str]:
        outcome: set[str] = set()
        for _ in range(count):
            with calling(server.target) as live:
                outcome |= {result.score.model_version for result in live.score_many(*KNOWN[:30])}
        return outcome

    with served_by(server, registry, clean_redis) as served:
        canary = republished(registry, activate=False)
        later = republished(registry, activate=False)
        served.models.activate(later)
        until(lambda: everywhere() == {later})
        served.models.roll_out(canary=canary, share=0.5)
        until(lambda: all(everywhere(1) == {later, canary} for _ in range(12)))
    assert server.stop() == 0
    assert "Traceback" not in server.log
    tear(registry / later)
    bundle.set_link(registry, SERVING, served.first)
    with served_by(start(*QUICK), registry, clean_redis) as again:
        assert again.first == served.first  # the one that served before, and the same canary
        assert set(again.versions(KNOWN[:30])) == {again.first, canary}
        assert again.models.state(later) == "REFUSED"
        assert again.models.serving().refusal.version == later
