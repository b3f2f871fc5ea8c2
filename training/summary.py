"""What a fit prints: the evidence of its manifest, as tables."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.bundle import OFFERS, Manifest


def print_summary(console: Console, manifest: Manifest, folder: Path) -> None:
    """Print what the models reach on the test cut-offs, and what acting on them is worth."""
    metrics, cutoffs = manifest.metrics, manifest.cutoffs
    console.print(
        f"{manifest.source['events']:,} events of {manifest.source['customers']:,} customers; "
        f"{sum(len(cutoffs[block]) for block in ('fit', 'gap', 'calibration'))} cut-offs to train on, "
        f"tested on {', '.join(cutoff[:10] for cutoff in cutoffs['test'])}",
        highlight=False,
        soft_wrap=True,
    )
    for reason, rows in manifest.source["left_out"].items():
        console.print(f"left out {rows:,} events {reason}", highlight=False)

    quality = Table(title="On the test cut-offs, later than all training", title_justify="left", box=box.SIMPLE)
    for heading in ("", "AUC", "AP", "Brier", "log loss", "ECE", "base rate"):
        quality.add_column(heading, justify="left" if not heading else "right")
    names = ("auc", "average_precision", "brier", "log_loss", "calibration_error", "base_rate")
    for offer in OFFERS:
        for label, found in ((offer, metrics[offer]), ("  recency alone", metrics[offer]["recency_alone"])):
            quality.add_row(label, *(f"{found[name]:.4f}" for name in names))
    console.print(quality)

    profit = Table(
        title="Expected profit at equal contacts: dynamic threshold, single threshold, p·v ranking",
        title_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("", "alerts", "precision", "dynamic", "single", "p·v", "budget price"):
        profit.add_column(heading, justify="left" if not heading else "right")
    for offer in OFFERS:
        policy = metrics[offer]["policy"]
        profit.add_row(
            offer,
            f"{policy['alert_share']:.1%}",
            f"{policy['precision']:.1%}",
            f"{policy['profit_dynamic_threshold']:,.0f}",
            f"{policy['profit_single_threshold']:,.0f}",
            f"{policy['profit_probability_times_value']:,.0f}",
            f"{manifest.economics[f'{offer}.budget_price']:.2f}",
        )
    console.print(profit)

    spend, parity = metrics["spend"], metrics["parity"]
    console.print(
        f"expected spend ({spend['model']}): mean absolute error {spend['mean_absolute_error']:.2f}, "
        f"predicted over actual total {spend['total_ratio']:.3f}\n"
        f"ONNX equals scikit-learn on {metrics['rows']['test']:,} rows: probabilities to "
        f"{max(parity[f'{offer}_probability'] for offer in OFFERS):.1e}, spend to {parity['expected_spend']:.1e}\n"
        f"bundle {folder} ({manifest.fingerprint})",
        highlight=False,
        soft_wrap=True,
    )
