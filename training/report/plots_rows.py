"""Plots of an offer's scored test rows: does it rank, are its probabilities honest, whom does it find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import (
    PrecisionRecallDisplay,
    RocCurveDisplay,
)

from training.evidence import TestRows
from training.report import curves
from training.report.drawing import BLUE, DASHES, GREY, INK, Picture, drawing, legend_above, percent_axis, picture

MEANT: Final = {"churn": "leavers", "propensity": "buyers"}
"""Whom an offer is about."""


def plots_of_rows(offer: str, rows: TestRows) -> list[Picture]:
    """ROC, precision and recall, reliability, gains and lift."""
    return [
        roc(offer, rows),
        precision_recall(offer, rows),
        reliability(offer, rows),
        gains(offer, rows),
        lift(offer, rows),
    ]


def roc(offer: str, rows: TestRows) -> Picture:
    """ROC, with recency alone."""
    with drawing() as figure:
        axes = figure.add_subplot()
        figures = []
        for n, (name, score) in enumerate(_scores(rows)):
            false, true, area = curves.roc(rows.label, score)
            figures.append(area)
            RocCurveDisplay(fpr=false, tpr=true).plot(ax=axes)
            _restyle(axes, n, f"{name} {area:.3f}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance 0.500")
        _unit_axes(axes, f"share of all others (not {MEANT[offer]})", f"share of {MEANT[offer]}")
        axes.set_aspect("auto")
        _one_legend(axes)
        legend_above(figure)
        alt = f"ROC curve for {offer}: AUC {figures[0]:.3f}{_beside(figures)}; chance is 0.500."
        return picture(
            figure,
            f"ROC, {offer}",
            alt,
            "How many of those meant are above a mark, against false alarms; the figure is the AUC.",
        )


def precision_recall(offer: str, rows: TestRows) -> Picture:
    """Precision against recall, with recency alone."""
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
        _unit_axes(axes, f"recall: share of {MEANT[offer]} found", "precision")
        axes.set_aspect("auto")
        _one_legend(axes)
        legend_above(figure)
        told = f"average precision {figures[0]:.3f}{_beside(figures)}; base rate {base:.3f}"
        alt = f"Precision and recall for {offer}: {told}."
        return picture(figure, f"Precision and recall, {offer}", alt, "The figure is the average precision.")


def reliability(offer: str, rows: TestRows) -> Picture:
    """Predicted against observed shares, over a histogram of predictions."""
    found = curves.reliability(rows.label, rows.probability)
    with drawing(3.9) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        CalibrationDisplay(found.observed, found.predicted, rows.probability).plot(
            ax=axes, ref_line=False, name="model"
        )
        _restyle(axes, 0, "tenths of the rows")
        axes.lines[-1].set(marker="o", markersize=4)
        axes.errorbar(found.predicted, found.observed, found.error, fmt="none", ecolor=BLUE, elinewidth=1, capsize=2)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="as said")
        _unit_axes(axes, "", "observed share")
        _one_legend(axes)
        legend_above(figure)
        below.bar([0.025 + 0.05 * n for n in range(20)], found.histogram, width=0.045, color=BLUE)
        below.set(xlabel="predicted probability", ylabel="rows")
        percent_axis(below.yaxis)
        pairs = ", ".join(f"{p:.0%} said {o:.0%} came" for p, o in zip(found.predicted, found.observed, strict=True))
        alt = f"Reliability for {offer}, by tenths of the rows: {pairs}."
        return picture(
            figure,
            f"Reliability, {offer}",
            alt,
            "On the dotted line what is said comes true; whiskers: 95% for independent rows. Below: how often.",
        )


def gains(offer: str, rows: TestRows) -> Picture:
    """Share of those meant who are among the customers contacted first."""
    meant = MEANT[offer]
    with drawing() as figure:
        axes = figure.add_subplot()
        told = []
        for n, (name, score) in enumerate(_scores(rows)):
            contacted, reached = curves.gains(rows.label, score)
            axes.plot(contacted, reached, color=(BLUE, INK)[n], linestyle=DASHES[n], label=name)
            told.append(f"{name} {reached[10]:.0%}, {reached[20]:.0%} and {reached[50]:.0%}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="at random")
        _unit_axes(axes, "share of customers, likeliest first", f"share of {meant} reached")
        legend_above(figure)
        alt = f"Gains for {offer}: among the first 10, 20 and 50% of customers are, of all {meant}: {'; '.join(told)}."
        return picture(
            figure, f"Gains, {offer}", alt, f"Whoever calls the first 20% reaches this share of all {meant}."
        )


def lift(offer: str, rows: TestRows) -> Picture:
    """How many times the base rate each tenth of the customers has."""
    found = curves.lift(rows.label, rows.probability)
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.bar(range(1, 11), found, width=0.75, color=BLUE, label="model")
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
        axes.set(xlabel="tenth of the customers, likeliest first", ylabel="times the base rate", xticks=range(1, 11))
        axes.grid(visible=False, axis="x")
        legend_above(figure)
        alt = (
            f"Lift for {offer}: the likeliest tenth has {found[0]:.1f} times the base rate "
            f"of {rows.label.mean():.1%}, the last tenth {found[-1]:.1f} times."
        )
        return picture(figure, f"Lift, {offer}", alt, f"1 is the base rate, {rows.label.mean():.1%} {MEANT[offer]}.")


def _scores(rows: TestRows) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("model", rows.probability)]
    return [*found, ("recency alone", rows.baseline)] if curves.has_baseline(rows) else found


def _beside(figures: Sequence[float]) -> str:
    """The baseline's figure, where there is one."""
    return f", recency alone {figures[1]:.3f}" if len(figures) > 1 else ""


def _restyle(axes: Axes, n: int, label: str) -> None:
    """The line that a display has just drawn, in our style (its own keywords differ between releases)."""
    axes.lines[-1].set(color=(BLUE, INK)[n], linestyle=DASHES[n], label=label, marker="", drawstyle="default")


def _one_legend(axes: Axes) -> None:
    if (own := axes.get_legend()) is not None:
        own.remove()


def _unit_axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
