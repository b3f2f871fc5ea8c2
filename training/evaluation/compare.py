"""Two bundles on the customers and cut-offs that both were tested on: which predicts better, and is that beyond chance?

Differences are paired, row by row, and their intervals come from resampled customers: a customer's rows stand or fall
together, for both offers.
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
from training.config import Offer
from training.evaluation.paired_bootstrap import RESAMPLES, Indices, Pairs, Statistics, resample
from training.evidence import Floats, TestRows, read_evidence, terms

IRRELEVANT: Final = 1e-4
"""Mean log loss (nats) that is no difference whatever its interval says: nobody could tell such models apart."""

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Measure:
    """A figure of A and of B, and B minus A with its 95 % interval."""

    a: float
    b: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class OfferComparison:
    """An offer on the common rows. ``measures``: log_loss, brier, auc, profit. ``note``: what to know of the profit."""

    rows: int
    customers: int
    cutoffs: int
    verdict: Verdict
    measures: dict[str, Measure]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """B, the second bundle, against A. ``log_loss`` is the sum over the offers, on which the verdict in all rests."""

    a: str
    b: str
    verdict: Verdict
    log_loss: Measure
    offers: dict[str, OfferComparison]

    def sentence(self) -> str:
        """The verdict in one line."""
        each = ", ".join(f"{name}: {offer.verdict}" for name, offer in self.offers.items())
        told = f"{self.b} is {self.verdict} than {self.a}" if self.verdict != "no difference shown" else self.verdict
        loss = self.log_loss
        return f"verdict: {told} (log loss {loss.difference:+.4f}, 95% {loss.low:+.4f} to {loss.high:+.4f}; {each})"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(first: Path, second: Path) -> Comparison:
    """Compare the bundles of two folders; InputError where they cannot be compared."""
    (manifest_a, rows_a), (manifest_b, rows_b) = _read(first), _read(second)
    return compare_rows(manifest_a, rows_a, manifest_b, rows_b)


def compare_rows(
    manifest_a: Manifest,
    rows_a: Mapping[str, TestRows],
    manifest_b: Manifest,
    rows_b: Mapping[str, TestRows],
    resamples: int = RESAMPLES,
) -> Comparison:
    """The same for what was read."""
    pairs = {
        offer: _common(offer, rows_a[offer], rows_b[offer]) for offer in OFFERS if offer in rows_a and offer in rows_b
    }
    if not pairs:
        raise InputError("the bundles have no offer in common: fit both again with this release")
    customers = np.unique(np.concatenate([pair.a.customer for pair in pairs.values()]))
    pairs = {name: Pairs(pair.a, pair.b, np.searchsorted(customers, pair.a.customer)) for name, pair in pairs.items()}

    statistics = {
        name: Statistics(pair, len(customers), terms(manifest_a, name, pair.a)) for name, pair in pairs.items()
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
    """A table, what to know of it, and one line of verdict."""
    table = Table(title=f"B = {comparison.b} against A = {comparison.a}", title_justify="left", box=box.SIMPLE)
    for heading in ("", "A", "B", "B minus A", "95 % interval", "verdict"):
        table.add_column(heading, justify="left" if heading in ("", "verdict") else "right")
    for name, offer in comparison.offers.items():
        table.add_row(f"{name}, {offer.rows:,} rows of {offer.customers:,} customers")
        for measure, found in offer.measures.items():
            digits = ",.0f" if measure == "profit" else ".4f"
            table.add_row(
                f"  {measure.replace('_', ' ')}",
                *(f"{figure:{digits}}" for figure in (found.a, found.b)),
                f"{found.difference:+{digits}}",
                f"{found.low:+{digits}} to {found.high:+{digits}}",
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


def _common(offer: str, a: TestRows, b: TestRows) -> Pairs:
    """Rows of the same customers at the same cut-offs."""
    in_a, in_b = [], []
    for cutoff in np.intersect1d(a.cutoff, b.cutoff):
        at_a, at_b = np.flatnonzero(a.cutoff == cutoff), np.flatnonzero(b.cutoff == cutoff)
        _, found_a, found_b = np.intersect1d(a.customer[at_a], b.customer[at_b], return_indices=True)
        in_a.append(at_a[found_a])
        in_b.append(at_b[found_b])
    if not sum(map(len, in_a)):
        raise InputError(
            f"the bundles have no test rows of {offer} in common: A was tested at {_dates(a)}, B at {_dates(b)}; "
            f"fit both on data that ends at the same time, with the same evaluation.step_days and test_cutoffs"
        )
    rows_a, rows_b = _take(a, np.concatenate(in_a)), _take(b, np.concatenate(in_b))
    if differ := int((rows_a.label != rows_b.label).sum()):
        raise InputError(
            f"{differ:,} of {len(rows_a.label):,} common rows of {offer} have other labels in B than in A: the bundles "
            f"answer different questions; fit both with the same [{offer}] section and the same source"
        )
    return Pairs(rows_a, rows_b, np.zeros(0, dtype=np.intp))


def _take(rows: TestRows, at: Indices) -> TestRows:
    return TestRows(**{name: column[at] for name, column in vars(rows).items()})


def _dates(rows: TestRows) -> str:
    """The cut-offs of some rows, for a message."""
    found = np.unique(rows.cutoff)
    if not len(found):
        return "no cut-off"
    told = [f"{datetime.fromtimestamp(cutoff, UTC):%Y-%m-%d %H:%M}" if cutoff else "a snapshot" for cutoff in found[:5]]
    return ", ".join(told) + (f" and {len(found) - 5} more" if len(found) > 5 else "")  # noqa: PLR2004


def _economics_note(name: str, a: Manifest, b: Manifest) -> str:
    keys = ["margin", *(f"{name}.{figure}" for figure in Offer.model_fields if figure != "budget_share")]
    other = [key for key in keys if a.economics[key] != b.economics[key]]
    return f"economics differ ({', '.join(other)}): the profit of both is counted with A's" if other else ""


def _read(folder: Path) -> tuple[Manifest, dict[str, TestRows]]:
    try:
        manifest = bundle.read(folder.parent, folder.name).manifest
    except BundleError as error:
        raise InputError(str(error)) from error
    return manifest, read_evidence(folder)[1]
