"""The summary that ``training fit`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.bundles.bundle import MONEY_OUTPUTS, OFFERS, Manifest
from training.evaluation.policies import verdict
from training.evidence import OPTIMISTIC, Finding


def print_summary(console: Console, manifest: Manifest) -> None:
    """Print the quality of the models on the test rows, and the profit of acting on them."""
    metrics = manifest.metrics
    offers = [offer for offer in OFFERS if offer in metrics]
    console.print(_source(manifest), highlight=False, soft_wrap=True)
    for reason, rows in manifest.source["left_out"].items():
        console.print(f"left out {rows:,} events {reason}", highlight=False)
    kept = ", ".join(feature.name for feature in manifest.features)
    console.print(f"{len(manifest.features)} slots: {kept}", highlight=False, soft_wrap=True)

    title = "Test cut-offs, later than all training data" if manifest.cutoffs else "Test customers"
    quality = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("", "AUC", "AP", "Brier", "log loss", "ECE", "base rate"):
        quality.add_column(heading, justify="left" if not heading else "right")
    names = ("auc", "average_precision", "brier", "log_loss", "calibration_error", "base_rate")
    for offer in offers:
        for label, figures in ((offer, metrics[offer]), ("  recency alone", metrics[offer].get("recency_alone"))):
            if figures is not None:
                quality.add_row(label, *(f"{figures[name]:.4f}" for name in names))
    console.print(quality)

    console.print(_profits(manifest, offers))
    for offer in offers:
        console.print(_value(offer, metrics["values"][offer]), highlight=False, soft_wrap=True)

    parity = metrics["parity"]
    console.print(
        f"{_spend(metrics['spend'])}\n"
        f"ONNX equals scikit-learn on {metrics['rows']['test']:,} rows: probabilities to "
        f"{max(parity[f'{offer}_probability'] for offer in offers):.1e}, spend and values to "
        f"{max(parity[name] for name in MONEY_OUTPUTS):.1e}",
        highlight=False,
        soft_wrap=True,
    )


def _profits(manifest: Manifest, offers: Sequence[str]) -> Table:
    """What acting on the test rows would have earned: a column per offer, so that it fits on a narrow terminal."""
    table = Table(
        title="Realised profit on the test rows, with equal numbers of contacts", title_justify="left", box=box.SIMPLE
    )
    for heading in ("", *offers):
        table.add_column(heading, justify="right" if heading else "left")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "alerts, of all customers": lambda policy: f"{policy['alert_share']:.1%}",
        "alerts that were right (precision)": lambda policy: f"{policy['precision']:.1%}",
        "dynamic threshold": lambda policy: f"{policy['profit_dynamic_threshold']:,.0f}",
        "  95 % interval": lambda policy: f"{policy['profit_low']:,.0f} to {policy['profit_high']:,.0f}",
        "  at the model's own values": lambda policy: f"{policy['profit_at_model_values']:,.0f}",
        "  verdict": lambda policy: verdict(policy["profit_low"], policy["profit_high"]),
        "single threshold": lambda policy: f"{policy['profit_single_threshold']:,.0f}",
        "ranking by p·v": lambda policy: f"{policy['profit_probability_times_value']:,.0f}",
    }
    for label, text in rows.items():
        table.add_row(label, *(text(manifest.metrics[offer]["policy"]) for offer in offers))
    table.add_row("budget price", *(f"{manifest.economics[f'{offer}.budget_price']:.2f}" for offer in offers))
    return table


def print_warnings(console: Console, findings: Sequence[Finding]) -> None:
    """Print those findings of the audit that mean that the quality printed may be too optimistic, one per line."""
    for finding in findings:
        if finding.check in OPTIMISTIC:
            console.print(f"warning: {finding.where}: {finding.message}", highlight=False, soft_wrap=True, markup=False)


def _source(manifest: Manifest) -> str:
    """What was read, and which rows the models were tested on."""
    source, cutoffs = manifest.source, manifest.cutoffs
    if not cutoffs:
        return (
            f"{source['customers']:,} customers of a snapshot, which cannot be split by time: tested on "
            f"{manifest.metrics['rows']['test']:,} of them, chosen {source['test']}; expect worse results on later data"
        )
    return (
        f"{source['events']:,} events of {source['customers']:,} customers; "
        f"{sum(len(cutoffs[block]) for block in ('fit', 'gap', 'calibration'))} cut-offs to train on, "
        f"tested on {', '.join(cutoff[:10] for cutoff in cutoffs['test'])}"
    )


def _spend(metrics: Mapping[str, Any]) -> str:
    if "mean_absolute_error" not in metrics:
        return f"expected spend ({metrics['model']}): from economics.value for every customer"
    return (
        f"expected spend ({metrics['model']}): mean absolute error {metrics['mean_absolute_error']:.2f}, "
        f"predicted total / actual total {metrics['total_ratio']:.3f}"
    )


def _value(offer: str, value: Mapping[str, Any]) -> str:
    """How reliable the value of a win is: predicted over realised total, with intervals."""
    ratios = [
        f"{value[group]['ratio']:.3f} ({value[group]['low']:.3f} to {value[group]['high']:.3f}) {of}"
        for group, of in (("total", "of all customers"), ("alerted", "of those alerted"))
        if group in value
    ]
    measured = f"predicted / realised {', '.join(ratios)}" if ratios else "not measured"
    return f"{offer} value if won ({value['model']}): {measured}"
