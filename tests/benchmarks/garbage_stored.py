"""Garbage in Redis and in bundles: what was mutated is refused, or means what it meant."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import redis
from tidemark.v1 import scoring_pb2

from feature_store.bundles import bundle
from feature_store.bundles.bundle import BundleError
from feature_store.online.keys import Keys, profile_keys
from feature_store.state.layout import Floats, StateBatch
from service.scoring.model import Model
from tests.benchmarks.garbage_made import GOOD, NUMBERS, TIMEOUT_S, Tally
from tests.benchmarks.garbage_requests import TOLERANCE, Oracle
from tests.benchmarks.setting import UNARY


class Values:
    """Mutated states and records under customers' keys."""

    def __init__(self, target: str, oracle: Oracle, url: str, seed: int, tally: Tally) -> None:
        self._oracle, self._tally, self._pick = oracle, tally, random.Random(seed)
        self._redis: Any = redis.Redis.from_url(url)
        self._keys = Keys(oracle.model.layout.fingerprint)
        self._channel = grpc.insecure_channel(target)
        self._ask: Any = self._channel.unary_unary(UNARY, None, scoring_pb2.ScoreCustomerResponse.FromString)
        self._others: list[Any] = [self._channel.unary_unary(path) for path in OTHER_CALLS]

    def run(self, count: int, names: Sequence[str]) -> None:
        """So many values, each set back after it was asked for."""
        for number in range(count):
            self._one(names[number % len(names)], names[(number * 7 + 1) % len(names)])
        self._channel.close()

    def _one(self, name: str, other: str) -> None:
        request = scoring_pb2.ScoreCustomerRequest(customer_id=name).SerializeToString()
        (state,), (record,) = self._keys.states([name]), profile_keys([name])
        before = {key: self._redis.get(key) for key in (state, record)}
        good = self._answer(request)
        key, stranger = (
            (state, self._keys.states([other])[0]) if self._pick.random() < 0.6 else (record, profile_keys([other])[0])
        )
        strangers = [self._redis.get(stranger), before[record if key == state else state]]
        self._redis.set(key, self._mutated(before[key] or b"", [value for value in strangers if value]))
        result = self._answer(request)
        self._tally.counts["values in Redis"] += 1
        if result is not None and not same(result, good):
            self._tally.fault("a score from a value that was mutated")
        self._tally.counts["values refused"] += result is None
        for call in self._others:
            self._answer_of(call, request)
        for key, value in before.items():
            self._redis.delete(key) if value is None else self._redis.set(key, value)

    def _mutated(self, value: bytes, others: Sequence[bytes]) -> bytes:
        pick, result = self._pick, bytearray(value)
        match pick.randrange(7):
            case 0 | 1 if result:
                for _ in range(pick.choice((1, 1, 1, 2, 8))):
                    result[pick.randrange(len(result))] ^= 1 << pick.randrange(8)
            case 2:
                del result[pick.randrange(len(result) + 1) :]
            case 3:
                result += pick.randbytes(pick.choice((1, 8, 100)))
            case 4 if len(result) > 32:
                at = 8 * pick.randrange(2, len(result) // 8)
                result[at : at + 8] = np.float64(pick.choice(NUMBERS)).tobytes()
            case 5:
                result[pick.randrange(len(result) + 1) :] = bytes(pick.choice((0, 8, len(result))))
            case _:
                return pick.choice(list(others) or [b""])
        return bytes(result)

    def _answer(self, request: bytes) -> Any:
        """A score, None where it was refused by a status that is defined."""
        reply = self._answer_of(self._ask, request)
        return None if reply is None else reply.score

    def _answer_of(self, call: Any, request: bytes) -> Any:
        try:
            return call(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() not in GOOD:
                self._tally.fault(f"a mutated value: {error.code().name} {error.details()}")
            return None


OTHER_CALLS: Final = (
    "/tidemark.v1.CustomerService/GetCustomer",
    "/tidemark.v1.CustomerService/SetConsent",
)
"""The first field of each is the customer's id, as of the request for a score."""


def same(a: Any, b: Any) -> bool:
    """Whether two scores of a customer, taken shortly after another, say the same; the second may be None."""
    if b is None:
        return False
    pairs = [(a.expected_spend, b.expected_spend)]
    for ours, theirs in ((a.churn, b.churn), (a.propensity, b.propensity)):
        pairs += [(ours.probability, theirs.probability), (ours.threshold, theirs.threshold)]
        if ours.automated_response_off is not theirs.automated_response_off:
            return False
    close = all(math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-4) for x, y in pairs)
    return close and a.top_interest == b.top_interest and abs(a.feature_time.seconds - b.feature_time.seconds) <= 1


class Bundles:
    """Mutated bundles: each is refused by BundleError, or scores as it did before."""

    def __init__(self, registry: Path, seed: int, tally: Tally) -> None:
        self._tally, self._pick = tally, random.Random(seed)
        self._folder = (registry / bundle.CURRENT).resolve()
        self._model = Model.current(registry)
        golden = bundle.read(registry).golden
        slots = np.concatenate([golden["input_state"] * share for share in (1.0, 0.7, 1.3)])
        every = np.ones(len(slots), dtype=np.bool_)
        self._batch = StateBatch(every, every, np.full(len(slots), time.time()), slots)
        self._good = self._scores(self._model)

    def _scores(self, model: Model) -> Floats:
        rows = np.tile(self._model.economics, (len(self._batch.slots), 1))
        return model.run(self._batch, float(self._batch.as_of[0]) + 3600, rows)[:, :-1]

    def run(self, count: int) -> None:
        """So many bundles."""
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(count):
                registry = Path(folder) / "registry"
                shutil.copytree(self._folder, registry / self._folder.name)
                (registry / bundle.CURRENT).symlink_to(self._folder.name)
                what = self._mutate(registry / self._folder.name)
                self._tally.counts["bundles"] += 1
                try:
                    result = self._scores(Model.current(registry))
                except BundleError:
                    self._tally.counts["bundles refused"] += 1
                except Exception as error:  # a server would end with a stack trace
                    self._tally.fault(f"a bundle ({what}): {type(error).__name__} {error}")
                else:
                    if not np.allclose(result, self._good, rtol=TOLERANCE, atol=TOLERANCE):
                        self._tally.fault(f"a bundle that was mutated ({what}) serves other scores")
                shutil.rmtree(registry)

    def _mutate(self, folder: Path) -> str:
        pick = self._pick
        name = pick.choice((bundle.MODEL_FILE, bundle.GOLDEN_FILE, bundle.MANIFEST_FILE))
        how = pick.choice((self._flip, self._cut, self._swap, self._field, self._field, self._golden))
        return how(folder, name)

    def _flip(self, folder: Path, name: str) -> str:
        data = bytearray((folder / name).read_bytes())
        for _ in range(self._pick.choice((1, 1, 8))):
            data[self._pick.randrange(len(data))] ^= 1 << self._pick.randrange(8)
        (folder / name).write_bytes(data)
        return f"bits of {name}"

    def _cut(self, folder: Path, name: str) -> str:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: self._pick.randrange(len(data))])
        return f"{name} cut"

    def _swap(self, folder: Path, name: str) -> str:
        other = self._pick.choice((bundle.MODEL_FILE, bundle.GOLDEN_FILE, bundle.MANIFEST_FILE))
        if self._pick.random() < 0.2:
            (folder / name).unlink()
        ours, theirs = folder / name, folder / other
        data = ours.read_bytes() if ours.exists() else b""
        if theirs.exists():
            ours.write_bytes(theirs.read_bytes())
        theirs.write_bytes(data)
        return f"{name} and {other} swapped"

    def _field(self, folder: Path, _name: str) -> str:
        """A field of the manifest changed, with the manifest's own hash made to fit."""
        path = folder / bundle.MANIFEST_FILE
        fields = json.loads(path.read_text())
        key = self._pick.choice(sorted(fields))
        holder, at = self._within(fields, key)
        holder[at] = self._pick.choice(
            (None, [], {}, "", "x" * 1000, -1, 0, 1e308, math.nan, math.inf, "nan", True, ["a"], {"a": math.nan})
        )
        path.write_text(json.dumps(fields | {bundle.MANIFEST_HASH: bundle.manifest_hash(fields)}))
        return f"{key} of the manifest"

    def _within(self, holder: Any, at: Any) -> tuple[Any, Any]:
        """Some place in a tree of lists and objects."""
        while isinstance(holder[at], dict | list) and holder[at] and self._pick.random() < 0.7:
            holder = holder[at]
            at = self._pick.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        return holder, at

    def _golden(self, folder: Path, _name: str) -> str:
        """Golden rows changed, or the graph put in their place, with both hashes made to fit."""
        path = folder / bundle.MANIFEST_FILE
        data = bytearray((folder / bundle.GOLDEN_FILE).read_bytes())
        for _ in range(self._pick.choice((1, 3))):
            data[self._pick.randrange(len(data))] ^= 1 << self._pick.randrange(8)
        (folder / bundle.GOLDEN_FILE).write_bytes(data)
        fields = json.loads(path.read_text()) | {"golden_sha256": bundle.sha256(bytes(data))}
        path.write_text(json.dumps(fields | {bundle.MANIFEST_HASH: bundle.manifest_hash(fields)}))
        return "golden rows"
