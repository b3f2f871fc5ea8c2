"""Plots of an offer's scored test rows: ranking, calibration, gains and lift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import (
    PrecisionRecallDisplay,
    RocCurveDisplay,
)

from training.evidence import HoldoutRows
from training.report import curves
from training.report.drawing import BLUE, DASHES, GREY, INK, Picture, drawing, legend_above, percent_axis, picture

POSITIVES: Final = {"churn": "leavers", "propensity": "buyers"}
"""What the positives of an offer are called."""


def plots_of_rows(offer: str, rows: HoldoutRows) -> list[Picture]:
    """All plots of the offer: ROC, precision and recall, reliability, gains and lift."""
    return [
        roc(offer, rows),
        precision_recall(offer, rows),
        reliability(offer, rows),
        gains(offer, rows),
        lift(offer, rows),
    ]


def roc(offer: str, rows: HoldoutRows) -> Picture:
    """ROC curves of the model and of recency alone."""
    with drawing() as figure:
        axes = figure.add_subplot()
        figures = []
        for n, (name, score) in enumerate(_scores(rows)):
            false, true, area = curves.roc(rows.label, score)
            figures.append(area)
            RocCurveDisplay(fpr=false, tpr=true).plot(ax=axes)
            _restyle(axes, n, f"{name} {area:.3f}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance 0.500")
        _unit_axes(
            axes, f"false positive rate (others than {POSITIVES[offer]})", f"true positive rate ({POSITIVES[offer]})"
        )
        axes.set_aspect("auto")
        _one_legend(axes)
        legend_above(figure)
        alt = f"ROC curve for {offer}: AUC {figures[0]:.3f}{_beside(figures)}; chance is 0.500."
        return picture(
            figure,
            f"ROC, {offer}",
            alt,
            "True against false positives as the mark on the score moves. The figure is the AUC.",
        )


def precision_recall(offer: str, rows: HoldoutRows) -> Picture:
    """Precision against recall, for the model and recency alone."""
    base = float(rows.label.mean())
    with drawing() as figure:
        axes = figure.add_subplot()
        figures = []
        for n, (name, score) in enumerate(_scores(rows)):
            precision, recall, average = curves.precision_recall(rows.label, score)
            figures.append(average)
            PrecisionRecallDisplay(precision, recall).plot(ax=axes)
            _restyle(axes, n, f"{name} {figures[-1]:.3f}")
        axes.axhline(base, color=GREY, linewidth=1, linestyle=":", label=f"base rate {base:.3f}")
        _unit_axes(axes, f"recall: share of {POSITIVES[offer]} found", "precision")
        axes.set_aspect("auto")
        _one_legend(axes)
        legend_above(figure)
        text = f"average precision {figures[0]:.3f}{_beside(figures)}; base rate {base:.3f}"
        alt = f"Precision and recall for {offer}: {text}."
        return picture(figure, f"Precision and recall, {offer}", alt, "The figure is the average precision.")


def reliability(offer: str, rows: HoldoutRows) -> Picture:
    """Predicted probabilities against observed rates, above a histogram of the predictions."""
    bins = curves.reliability(rows.label, rows.probability, rows.customer)
    with drawing(3.9) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        CalibrationDisplay(bins.observed, bins.predicted, rows.probability).plot(ax=axes, ref_line=False, name="model")
        _restyle(axes, 0, "tenths of the rows")
        axes.lines[-1].set(marker="o", markersize=4)
        axes.errorbar(bins.predicted, bins.observed, bins.error, fmt="none", ecolor=BLUE, elinewidth=1, capsize=2)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect calibration")
        _unit_axes(axes, "", "observed rate")
        _one_legend(axes)
        legend_above(figure)
        below.bar([0.025 + 0.05 * n for n in range(20)], bins.histogram, width=0.045, color=BLUE)
        below.set(xlabel="predicted probability", ylabel="rows")
        percent_axis(below.yaxis)
        pairs = ", ".join(
            f"{p:.0%} predicted, {o:.0%} observed" for p, o in zip(bins.predicted, bins.observed, strict=True)
        )
        alt = f"Reliability for {offer}, by tenths of the rows: {pairs}."
        return picture(
            figure,
            f"Reliability, {offer}",
            alt,
            "On the dotted line predictions equal observed rates. Whiskers: 95%, rows of a customer clustered. Below: "
            "number of rows.",
        )


def gains(offer: str, rows: HoldoutRows) -> Picture:
    """Share of the positives among the customers contacted first."""
    positives = POSITIVES[offer]
    with drawing() as figure:
        axes = figure.add_subplot()
        texts = []
        for n, (name, score) in enumerate(_scores(rows)):
            contacted, reached = curves.gains(rows.label, score)
            axes.plot(contacted, reached, color=(BLUE, INK)[n], linestyle=DASHES[n], label=name)
            texts.append(f"{name} {reached[10]:.0%}, {reached[20]:.0%} and {reached[50]:.0%}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="at random")
        _unit_axes(axes, "share of customers, highest score first", f"share of {positives} reached")
        legend_above(figure)
        alt = (
            f"Gains for {offer}: share of all {positives} among the first 10, 20 and 50% of customers: "
            f"{'; '.join(texts)}."
        )
        return picture(
            figure,
            f"Gains, {offer}",
            alt,
            f"Share of all {positives} reached by contacting the customers with the highest scores.",
        )


def lift(offer: str, rows: HoldoutRows) -> Picture:
    """Lift of each tenth of the customers."""
    tenths = curves.lift(rows.label, rows.probability)
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.bar(range(1, 11), tenths, width=0.75, color=BLUE, label="model")
        if curves.has_baseline(rows):
            axes.plot(
                range(1, 11),
                curves.lift(rows.label, rows.baseline),
                "D",
                color=INK,
                markersize=4.5,
                label="recency alone",
            )
        axes.axhline(1, color=GREY, linewidth=1, linestyle=":", label="base rate")
        axes.set(
            xlabel="tenth of the customers, highest score first", ylabel="times the base rate", xticks=range(1, 11)
        )
        axes.grid(visible=False, axis="x")
        legend_above(figure)
        alt = (
            f"Lift for {offer}: the highest tenth has {tenths[0]:.1f} times the base rate "
            f"of {rows.label.mean():.1%}, the last tenth {tenths[-1]:.1f} times."
        )
        return picture(
            figure, f"Lift, {offer}", alt, f"1 is the base rate: {rows.label.mean():.1%} {POSITIVES[offer]}."
        )


def _scores(rows: HoldoutRows) -> list[tuple[str, Any]]:
    model: list[tuple[str, Any]] = [("model", rows.probability)]
    return [*model, ("recency alone", rows.baseline)] if curves.has_baseline(rows) else model


def _beside(figures: Sequence[float]) -> str:
    """The baseline's figure, if there is a baseline."""
    return f", recency alone {figures[1]:.3f}" if len(figures) > 1 else ""


def _restyle(axes: Axes, n: int, label: str) -> None:
    """Restyle the line that a display has just drawn (its own keywords differ between releases)."""
    axes.lines[-1].set(color=(BLUE, INK)[n], linestyle=DASHES[n], label=label, marker="", drawstyle="default")


def _one_legend(axes: Axes) -> None:
    if (own := axes.get_legend()) is not None:
        own.remove()


def _unit_axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
