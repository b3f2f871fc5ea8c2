"""The evidence of a fit: two files of the bundle, from which report and comparison are made.

``evidence.json`` has tables, ``evidence.npz`` the scored rows of the test cut-offs. Neither has the ids of customers:
rows are identified by a keyed hash of the id (``training.customer_key``).
"""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from feature_store.bundles.bundle import OFFERS
from feature_store.errors import InputError
from feature_store.state.layout import Floats

TABLES_FILE: Final = "evidence.json"
ROWS_FILE: Final = "evidence.npz"

LEAK: Final = "leak"
WITHOUT_TIMES: Final = "attributes without times"
OPTIMISTIC: Final = (WITHOUT_TIMES, LEAK)
"""Checks of the audit whose findings mean that quality on past data may be too optimistic; a fit repeats them."""

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
    """AUC and log loss."""

    auc: float
    log_loss: float


class Optimism(_Table):
    """Quality for an offer by a random split and by the temporal split."""

    offer: str
    random: Quality
    temporal: Quality


class Trial(_Table):
    """A candidate model in cross-validation.

    Attributes:
        target: What it predicts.
        model: Its name.
        loss: Mean log loss (spend: Poisson deviance) of the validation rows.
        behind: How much higher that is than the best candidate's.
        error: Standard error of ``behind``, from paired differences clustered by customer.
        chosen: Whether it is the model that is used.
    """

    target: str
    model: str
    loss: float
    behind: float
    error: float
    chosen: bool


class FeatureSubset(_Table):
    """A step of backward elimination: a set of slots, and the loss of models with it.

    Attributes:
        slots: Names of the slots.
        state_bytes: Size of a state.
        loss: By target, as in Trial.
        behind: By target, compared with the best subset.
        error: By target, the standard error of ``behind``.
        graph_us: Time to compute the features of one state, in microseconds.
        chosen: Whether it is the subset that is used.
    """

    slots: list[str]
    state_bytes: int
    loss: dict[str, float]
    behind: dict[str, float]
    error: dict[str, float]
    graph_us: float | None = None
    chosen: bool = False


class SlotStability(_Table):
    """How often a slot is chosen when slots are ranked on random halves of the customers.

    Attributes:
        slot: Name of the slot.
        group: Its group: decayed sums of the same event and field with different half-lives are one.
        chosen: Whether the models have it.
        frequency: Share of the halves in which it is among as many slots as were chosen.
        group_frequency: Share of the halves in which any slot of its group is.
    """

    slot: str
    group: str
    chosen: bool
    frequency: float
    group_frequency: float


class Importance(_Table):
    """Permutation importance (Breiman, 2001): AUC (spend: deviance) lost on the test rows when a slot is shuffled.

    ``lost`` is the mean over repetitions and ``spread`` the standard deviation.
    """

    target: str
    slot: str
    lost: float
    spread: float


class Damage(_Table):
    """AUC on damaged data; ``kind`` is ``missing values``, ``lost events`` or ``duplicated events``."""

    offer: str
    kind: str
    share: float
    auc: float


class Segment(_Table):
    """A segment of the customers at the test cut-offs, with its rates and means."""

    name: str
    scheme: Literal["k-means", "RFM"]
    share: float
    churn_rate: float | None
    propensity_rate: float | None
    mean_spend: float | None
    profile: dict[str, float]


class Policy(_Table):
    """Profit of a policy at one budget.

    Attributes:
        offer: The offer.
        policy: Name of the policy.
        budget_share: Share of customers that may be contacted.
        is_own_budget: Whether that is the config's budget, which served thresholds have.
        rows: Number of test rows.
        contacts: Number of contacts.
        precision: Share of the contacts with a positive outcome.
        expected: Expected profit.
        at_model_values: Profit of the observed outcomes at the model's own values.
        realised: Realised profit: of the observed outcomes, paid with values that the model did not make.
        low: Lower end of its 95 % interval, by a bootstrap of customers.
        high: Upper end.
        ahead: Realised profit of the dynamic threshold minus that of this policy; None for the dynamic threshold.
        ahead_low: Lower end of the interval of ``ahead``.
        ahead_high: Upper end.
    """

    offer: str
    policy: str
    budget_share: float
    is_own_budget: bool = False
    rows: int = 0
    contacts: float
    precision: float = 0.0
    expected: float
    at_model_values: float = 0.0
    realised: float
    low: float
    high: float
    ahead: float | None = None
    ahead_low: float | None = None
    ahead_high: float | None = None


class Cell(_Table):
    """Dynamic against single threshold for a pair of assumed rates: differences in realised profit with intervals.

    ``ahead``: with the same number of contacts; ``tuned_ahead``: against the single threshold with the number of
    contacts that is best for it on the calibration data.
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


class NegativeControl(_Table):
    """The comparison of policies with values shuffled among customers, in which the dynamic threshold must not win.

    Attributes:
        offer: The offer.
        shuffles: Number of shuffles.
        mean_lead: Mean lead of the dynamic threshold in realised profit.
        shown_ahead: Number of shuffles in which it is significantly ahead.
        passed: Whether that is no more than chance allows.
    """

    offer: str
    shuffles: int
    mean_lead: float
    shown_ahead: int
    passed: bool


class ValueBin(_Table):
    """A tenth of the customers by predicted value: mean predicted and realised value, and the latter's interval."""

    predicted: float
    realised: float
    low: float
    high: float


class Ratio(_Table):
    """Total of the predicted values over that of the realised ones, with its 95 % interval, and the number of rows."""

    ratio: float
    low: float
    high: float
    rows: int


class ValueReliability(_Table):
    """Predicted against realised value if won of an offer; ``alerted``: among the alerted customers."""

    offer: str
    bins: list[ValueBin]
    total: Ratio | None
    alerted: Ratio | None


class HorizonEffect(_Table):
    """How alerts and profit of the churn offer change with the value horizon, at the offer's budget.

    Attributes:
        horizon_days: The value horizon.
        learnt_from: Number of rows that spend over this horizon was learnt from; the other figures are None if there
            are too few.
        mean_value: Mean value if won.
        never: Share of customers with a threshold of 1.
        paying: Share of customers for whom acting pays, without a budget.
        alerts: Share of customers alerted within the budget.
        same_alerts: Share of these alerts that the config's horizon alerts as well.
        profit: Realised profit of the alerts.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    horizon_days: float
    learnt_from: int
    mean_value: float | None = None
    never: float | None = None
    paying: float | None = None
    alerts: float | None = None
    same_alerts: float | None = None
    profit: float | None = None
    low: float | None = None
    high: float | None = None


class Value(_Table):
    """Value per customer of a policy, estimated from randomised data (IPS, SNIPS or DR), with its 95 % interval."""

    policy: str
    estimator: str
    value: float
    low: float
    high: float


class BinaryAttribute(_Table):
    """A binary attribute, and how well others imply it.

    Attributes:
        tag: Name of the attribute.
        said_by: Attributes that imply it, with ``not`` before those whose absence does.
        support: Share of customers that have it.
        confidence: Highest confidence of these rules.
        cluster: Number of its cluster.
        kept: Whether the models need it.
    """

    tag: str
    said_by: list[str]
    support: float
    confidence: float
    cluster: int
    kept: bool


class Evidence(_Table):
    """All tables. An empty table does not apply; ``notes`` say why.

    ``customer_key`` identifies the key of the hashes in the rows file without telling it; bundles of release 0.2 and
    earlier have none.
    """

    audit: list[Finding] = []
    optimism: list[Optimism] = []
    trials: list[Trial] = []
    ladder: list[FeatureSubset] = []
    stability: list[SlotStability] = []
    candidates: int = 0
    earned_nothing: float = 0.0
    importance: list[Importance] = []
    robustness: list[Damage] = []
    segments: list[Segment] = []
    policies: list[Policy] = []
    grid: list[Cell] = []
    controls: list[NegativeControl] = []
    values: list[ValueReliability] = []
    horizons: list[HorizonEffect] = []
    treatment: list[Value] = []
    tags: list[BinaryAttribute] = []
    tags_cost: dict[str, float] = {}
    costs: dict[str, float] = {}
    notes: list[str] = []
    customer_key: str = ""


@dataclass(frozen=True)
class HoldoutRows:
    """An offer's test rows as scored by the evaluation models, each array ``[n]``.

    Attributes:
        customer: Hash of the id, uint64; in a file, a keyed hash.
        cutoff: Unix seconds; 0 for a snapshot.
        label: The observed outcome.
        probability: Calibrated.
        threshold: Dynamic.
        value: The model's value if the offer wins.
        realised_value: The value of a win that came, or an estimate of it.
        value_correction: What a customer who stayed adds to the values of those who left; 0 for others.
        contact_cost: For the customer.
        offer_cost: For the customer.
        recency_days: NaN if unknown.
        baseline: Probability by recency alone.
        random: Probability by a model of a random split, NaN if the row was in its training part.
    """

    customer: npt.NDArray[np.uint64]
    cutoff: Floats
    label: npt.NDArray[np.bool_]
    probability: Floats
    threshold: Floats
    value: Floats
    realised_value: Floats
    value_correction: Floats
    contact_cost: Floats
    offer_cost: Floats
    recency_days: Floats
    baseline: Floats
    random: Floats


def hashed_ids(customer_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Hashes of ids, uint64, to group rows by customer in memory.

    Without a key anyone can recompute them, so they must not be written to a file (:func:`with_keyed_ids`).
    """
    digests = [hashlib.blake2b(name.encode(), digest_size=8, person=b"tidemark").digest() for name in customer_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def with_keyed_ids(rows: HoldoutRows, key: bytes) -> HoldoutRows:
    """The rows with keyed hashes of the customers: HMAC-SHA256 of the hash, cut to 64 bits."""
    hashes, index = np.unique(rows.customer, return_inverse=True)
    digests = [hmac.digest(key, number.to_bytes(8, "little"), "sha256")[:8] for number in hashes.tolist()]
    return replace(rows, customer=np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)[index])


def key_name(key: bytes) -> str:
    """Identifies a key without telling it: 16 hexadecimal digits."""
    return hmac.digest(key, b"name of this key", "sha256")[:8].hex()


def pack_rows(rows: Mapping[str, HoldoutRows]) -> bytes:
    """The contents of the rows file, for rows with keyed hashes."""
    arrays = {f"{offer}_{name}": column for offer, table in rows.items() for name, column in vars(table).items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_evidence(folder: Path) -> tuple[Evidence, dict[str, HoldoutRows]]:
    """Read tables and rows from a bundle's folder; InputError if they are missing or damaged."""
    if folder.is_dir() and not (folder / TABLES_FILE).exists():  # written after the rows
        raise InputError(
            f"{folder}: the bundle has no evidence yet: the fit that published it adds the evidence when it is ready; "
            "if that fit was stopped, fit again"
        )
    try:
        tables = Evidence.model_validate_json((folder / TABLES_FILE).read_bytes())
        with np.load(folder / ROWS_FILE, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        names = HoldoutRows.__dataclass_fields__
        rows = {
            offer: HoldoutRows(**{name: arrays[f"{offer}_{name}"] for name in names})
            for offer in OFFERS
            if f"{offer}_label" in arrays
        }
    except (OSError, ValidationError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{folder}: the evidence cannot be read ({type(error).__name__}): fit it again") from error
    return tables, rows
