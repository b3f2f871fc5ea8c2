"""Comparing two bundles on the test rows that both have: which predicts better, and is the difference significant?

Differences are paired by row. Intervals come from resampled customers: all rows of a customer, for both offers, are
drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS, BundleError, Manifest
from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.arrays import Index
from training.config import Offer
from training.evaluation.paired_bootstrap import RESAMPLES, Pairs, Statistics, resample
from training.evaluation.scored_rows import terms_in
from training.evidence import HoldoutRows, read_evidence

IRRELEVANT: Final = 1e-4
"""Difference in mean log loss (nats) below which models count as equal, even if the difference is significant."""

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Measure:
    """A measure of A and of B, and the difference B - A with its 95 % interval."""

    a: float
    b: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class OfferComparison:
    """The comparison for an offer. ``measures``: log_loss, brier, auc, profit. ``note``: a remark on the profit."""

    rows: int
    customers: int
    cutoffs: int
    verdict: Verdict
    measures: dict[str, Measure]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Bundle B compared with bundle A; the verdict rests on ``log_loss``, which is the sum over the offers."""

    a: str
    b: str
    verdict: Verdict
    log_loss: Measure
    offers: dict[str, OfferComparison]

    def sentence(self) -> str:
        """The verdict on one line."""
        each = ", ".join(f"{name}: {offer.verdict}" for name, offer in self.offers.items())
        text = f"{self.b} is {self.verdict} than {self.a}" if self.verdict != "no difference shown" else self.verdict
        loss = self.log_loss
        return f"verdict: {text} (log loss {loss.difference:+.4f}, 95% {loss.low:+.4f} to {loss.high:+.4f}; {each})"

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return asdict(self)


def compare(first: Path, second: Path) -> Comparison:
    """Compare the bundles in two folders; InputError if they cannot be compared."""
    (manifest_a, key_a, rows_a), (manifest_b, key_b, rows_b) = _read(first), _read(second)
    if key_a != key_b:
        raise InputError(
            f"{manifest_a.version} and {manifest_b.version} identify customers with different keys, so their rows "
            "cannot be matched: fit both with the same --customer-key"
        )
    return compare_rows(manifest_a, rows_a, manifest_b, rows_b)


def compare_rows(
    manifest_a: Manifest,
    rows_a: Mapping[str, HoldoutRows],
    manifest_b: Manifest,
    rows_b: Mapping[str, HoldoutRows],
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two bundles by their manifests and test rows; InputError if they have none in common."""
    pairs = {
        offer: _common(offer, rows_a[offer], rows_b[offer]) for offer in OFFERS if offer in rows_a and offer in rows_b
    }
    if not pairs:
        raise InputError("the bundles have no offer in common: fit both again with this release")
    customers = np.unique(np.concatenate([pair.a.customer for pair in pairs.values()]))
    pairs = {name: Pairs(pair.a, pair.b, np.searchsorted(customers, pair.a.customer)) for name, pair in pairs.items()}

    statistics = {
        name: Statistics(pair, len(customers), terms_in(manifest_a, name, pair.a)) for name, pair in pairs.items()
    }
    resampled = resample(len(customers), statistics, resamples)
    offers, total_a, total_b, total = {}, 0.0, 0.0, np.zeros(resamples)
    for name, pair in pairs.items():
        totals = statistics[name].totals()
        measures = {measure: _measure(*totals[measure], resampled[name][measure]) for measure in totals}
        loss = measures["log_loss"]
        offers[name] = OfferComparison(
            rows=len(pair.label),
            customers=len(np.unique(pair.owner)),
            cutoffs=len(np.unique(pair.a.cutoff)),
            verdict=_verdict(loss),
            measures=measures,
            note=_economics_note(name, manifest_a, manifest_b),
        )
        total_a, total_b, total = total_a + loss.a, total_b + loss.b, total + resampled[name]["log_loss"]
    loss = _measure(total_a, total_b, total)
    return Comparison(manifest_a.version, manifest_b.version, _verdict(loss), loss, offers)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print a table, the notes and the verdict."""
    table = Table(title=f"B = {comparison.b} against A = {comparison.a}", title_justify="left", box=box.SIMPLE)
    for heading in ("", "A", "B", "B minus A", "95 % interval", "verdict"):
        table.add_column(heading, justify="left" if heading in ("", "verdict") else "right")
    for name, offer in comparison.offers.items():
        table.add_row(f"{name}, {offer.rows:,} rows of {offer.customers:,} customers")
        for measure, values in offer.measures.items():
            digits = ",.0f" if measure == "profit" else ".4f"
            table.add_row(
                f"  {measure.replace('_', ' ')}",
                *(f"{figure:{digits}}" for figure in (values.a, values.b)),
                f"{values.difference:+{digits}}",
                f"{values.low:+{digits}} to {values.high:+{digits}}",
                offer.verdict if measure == "log_loss" else "",
            )
    console.print(table)
    for name, offer in comparison.offers.items():
        if offer.note:
            console.print(f"{name}: {offer.note}", highlight=False, soft_wrap=True)
    console.print(comparison.sentence(), highlight=False, soft_wrap=True)


def _measure(a: float, b: float, resampled: Floats) -> Measure:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Measure(a, b, b - a, float(low), float(high))


def _verdict(loss: Measure) -> Verdict:
    if loss.high < -IRRELEVANT:
        return "better"
    return "worse" if loss.low > IRRELEVANT else "no difference shown"


def _common(offer: str, a: HoldoutRows, b: HoldoutRows) -> Pairs:
    """The rows of the same customers at the same cut-offs."""
    in_a, in_b = [], []
    for cutoff in np.intersect1d(a.cutoff, b.cutoff):
        at_a, at_b = np.flatnonzero(a.cutoff == cutoff), np.flatnonzero(b.cutoff == cutoff)
        _, common_a, common_b = np.intersect1d(a.customer[at_a], b.customer[at_b], return_indices=True)
        in_a.append(at_a[common_a])
        in_b.append(at_b[common_b])
    if not sum(map(len, in_a)):
        raise InputError(
            f"the bundles have no test rows of {offer} in common: A was tested at {_dates(a)}, B at {_dates(b)}; "
            f"fit both on data that ends at the same time, with the same evaluation.test_step_days and test_cutoffs"
        )
    rows_a, rows_b = _take(a, np.concatenate(in_a)), _take(b, np.concatenate(in_b))
    if differ := int((rows_a.label != rows_b.label).sum()):
        raise InputError(
            f"{differ:,} of {len(rows_a.label):,} common rows of {offer} have different labels in A and B: the bundles "
            f"predict different things; fit both with the same [{offer}] section and the same source"
        )
    return Pairs(rows_a, rows_b, np.zeros(0, dtype=np.intp))


def _take(rows: HoldoutRows, at: Index) -> HoldoutRows:
    return HoldoutRows(**{name: column[at] for name, column in vars(rows).items()})


def _dates(rows: HoldoutRows) -> str:
    """The cut-offs of rows, for a message."""
    cutoffs = np.unique(rows.cutoff)
    if not len(cutoffs):
        return "no cut-off"
    dates = [
        f"{datetime.fromtimestamp(cutoff, UTC):%Y-%m-%d %H:%M}" if cutoff else "a snapshot" for cutoff in cutoffs[:5]
    ]
    return ", ".join(dates) + (f" and {len(cutoffs) - 5} more" if len(cutoffs) > 5 else "")  # noqa: PLR2004


def _economics_note(name: str, a: Manifest, b: Manifest) -> str:
    keys = ["margin", *(f"{name}.{figure}" for figure in Offer.model_fields if figure != "budget_share")]
    different = [key for key in keys if a.economics[key] != b.economics[key]]
    return f"economics differ ({', '.join(different)}): both profits are computed with those of A" if different else ""


def _read(folder: Path) -> tuple[Manifest, str, dict[str, HoldoutRows]]:
    """Manifest, name of the key of customer ids, and rows."""
    try:
        manifest = bundle.read(folder.parent, folder.name).manifest
    except BundleError as error:
        raise InputError(str(error)) from error
    evidence, rows = read_evidence(folder)
    return manifest, evidence.customer_key, rows
