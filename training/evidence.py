"""What a fit found out: two files of the bundle, from which report and comparison are made.

``evidence.json`` holds tables, ``evidence.npz`` the scored rows of the test cut-offs. Neither holds a customer's id:
rows are told apart by a hash of it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from feature_store.bundles.bundle import OFFERS, Manifest
from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.graph.thresholds import CustomerOffer

TABLES_FILE: Final = "evidence.json"
ROWS_FILE: Final = "evidence.npz"

Severity = Literal["fatal", "warning", "note"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Table):
    """One finding of the audit: the place, the problem and how to fix it.

    ``share``: the affected share of the rows that were checked, if the finding has one. Bundles of release 0.2 and
    earlier name the fix ``mend``.
    """

    severity: Severity
    check: str
    where: str
    message: str
    fix: str = Field(validation_alias=AliasChoices("fix", "mend"))
    share: float | None = None


class Quality(_Table):
    """AUC and log loss of one way to estimate them."""

    auc: float
    log_loss: float


class Optimism(_Table):
    """What a random split would have promised for an offer, next to what later cut-offs deliver."""

    offer: str
    random: Quality
    temporal: Quality


class Trial(_Table):
    """A candidate model in the temporal folds.

    loss: mean log loss (spend: Poisson deviance) of the validation rows; behind: how much more than the best
    candidate's, with its standard error, from paired differences clustered by customer.
    """

    target: str
    model: str
    loss: float
    behind: float
    error: float
    chosen: bool


class Rung(_Table):
    """One step of the ladder: a set of slots, and what the models lose with it.

    loss, behind, error: by target, as in Trial, against the best rung; graph_us: what it took to make the features of
    one customer's state, in microseconds.
    """

    slots: list[str]
    state_bytes: int
    loss: dict[str, float]
    behind: dict[str, float]
    error: dict[str, float]
    graph_us: float | None = None
    chosen: bool = False


class Importance(_Table):
    """How much AUC (spend: deviance) is lost on the test cut-offs when a slot's values are shuffled among the rows."""

    target: str
    slot: str
    lost: float
    spread: float


class Damage(_Table):
    """Quality on damaged data: ``kind`` is ``missing values``, ``lost events`` or ``duplicated events``."""

    offer: str
    kind: str
    share: float
    auc: float


class Segment(_Table):
    """A group of customers at the test cut-offs (rates and means over them)."""

    name: str
    scheme: Literal["k-means", "RFM"]
    share: float
    churn_rate: float | None
    propensity_rate: float | None
    mean_spend: float | None
    profile: dict[str, float]


class Policy(_Table):
    """Profit of one way to choose customers, at one budget; low and high: 95 % bootstrap interval, by customers.

    against: mean of (dynamic threshold minus this policy) with its interval; None for the dynamic threshold itself.
    """

    offer: str
    policy: str
    budget_share: float
    contacts: float
    expected: float
    realised: float
    low: float
    high: float
    ahead: float | None = None
    ahead_low: float | None = None
    ahead_high: float | None = None


class Cell(_Table):
    """The dynamic threshold against the best single one (tuned on calibration data) for assumed rates.

    ahead: at equal contacts; tuned_ahead: against the single threshold with as many contacts as it does best with.
    """

    offer: str
    success_rate: float
    redemption_rate: float
    contacts: float
    ahead: float
    low: float
    high: float
    tuned_ahead: float | None = None
    tuned_low: float | None = None
    tuned_high: float | None = None


class Value(_Table):
    """Value per customer of a policy on randomised data, by one estimator (IPS, SNIPS, DR), with its 95 % interval."""

    policy: str
    estimator: str
    value: float
    low: float
    high: float


class Tag(_Table):
    """A tag (0/1 attribute) that others say as well, and what leaving it out costs."""

    tag: str
    said_by: list[str]
    support: float
    confidence: float
    cluster: int
    kept: bool


class Evidence(_Table):
    """All tables. An empty one means that it does not apply, and ``notes`` say why."""

    audit: list[Finding] = []
    optimism: list[Optimism] = []
    trials: list[Trial] = []
    ladder: list[Rung] = []
    candidates: int = 0
    earned_nothing: float = 0.0
    importance: list[Importance] = []
    robustness: list[Damage] = []
    segments: list[Segment] = []
    policies: list[Policy] = []
    grid: list[Cell] = []
    treatment: list[Value] = []
    tags: list[Tag] = []
    tags_cost: dict[str, float] = {}
    costs: dict[str, float] = {}
    notes: list[str] = []


@dataclass(frozen=True)
class TestRows:
    """Rows of an offer's test cut-offs, each array ``[n]``, as the models of the evaluation scored them.

    customer: uint64 hash of the id; cutoff: unix seconds (0 where there are none); probability: calibrated;
    threshold: dynamic; value: margin times expected spend; contact_cost and offer_cost: of acting on the customer;
    recency_days: NaN where there is none; baseline: recency alone as a probability; random: probability by a model
    of a random split, NaN where the row was in its training part.
    """

    __test__ = False

    customer: npt.NDArray[np.uint64]
    cutoff: Floats
    label: npt.NDArray[np.bool_]
    probability: Floats
    threshold: Floats
    value: Floats
    contact_cost: Floats
    offer_cost: Floats
    recency_days: Floats
    baseline: Floats
    random: Floats


def terms(manifest: Manifest, offer: str, rows: TestRows) -> CustomerOffer:
    """The offer to the customers of test rows, at the rates of a manifest."""
    success, redemption = (manifest.economics[f"{offer}.{rate}"] for rate in ("success_rate", "redemption_rate"))
    return CustomerOffer(rows.contact_cost, rows.offer_cost, success, redemption, budget_share=1.0)


def hashed_ids(customer_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The same id has the same hash in every bundle, and no hash tells the id to who does not know it already."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8, person=b"tidemark").digest() for name in customer_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def pack_rows(rows: Mapping[str, TestRows]) -> bytes:
    """The rows file, by offer."""
    arrays = {f"{offer}_{name}": column for offer, found in rows.items() for name, column in vars(found).items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_evidence(folder: Path) -> tuple[Evidence, dict[str, TestRows]]:
    """Tables and rows of a bundle's folder; InputError where they are missing or torn."""
    if folder.is_dir() and not (folder / TABLES_FILE).exists():  # it is written after the rows
        raise InputError(
            f"{folder}: the evidence is not there yet: the fit that published this bundle adds it when it is made. "
            "If that fit has been stopped, fit again"
        )
    try:
        tables = Evidence.model_validate_json((folder / TABLES_FILE).read_bytes())
        with np.load(folder / ROWS_FILE, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        names = TestRows.__dataclass_fields__
        rows = {
            offer: TestRows(**{name: arrays[f"{offer}_{name}"] for name in names})
            for offer in OFFERS
            if f"{offer}_label" in arrays
        }
    except (OSError, ValidationError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{folder}: no evidence can be read there ({type(error).__name__}): fit it again") from error
    return tables, rows
