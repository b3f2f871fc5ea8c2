"""Plots of how the models were chosen and what they rest on: splits, candidates, ladder, importance, damage."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from training.evidence import Damage, Importance, Optimism, Rung, Trial
from training.report.drawing import (
    BLUE,
    INK,
    MARKERS,
    VERMILION,
    Picture,
    drawing,
    legend_above,
    line_style,
    percent_axis,
    picture,
    rows_axis,
    rows_height,
    short,
)

MOST_BARS = 15


def optimism(found: Sequence[Optimism]) -> Picture:
    """What a random split promises beside what later cut-offs deliver: AUC and log loss."""
    with drawing(rows_height(len(found), 0.32, 1.5)) as figure:
        for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("auc", "log_loss"), strict=True):
            rows = range(len(found))
            ends = [[getattr(getattr(one, split), measure) for one in found] for split in ("random", "temporal")]
            axes.hlines(rows, *ends, color=INK, linewidth=1)
            axes.plot(ends[0], rows, "D", color=VERMILION, markersize=6, label="random split")
            axes.plot(ends[1], rows, "o", color=BLUE, markersize=7, label="later cut-offs")
            rows_axis(axes, [one.offer for one in found])
            axes.set_xlabel({"auc": "AUC (more is better)", "log_loss": "log loss (less is)"}[measure])
            axes.margins(x=0.2)
            axes.locator_params(axis="x", nbins=4)
        legend_above(figure)
        told = "; ".join(
            f"{one.offer}: AUC {one.random.auc:.3f} promised, {one.temporal.auc:.3f} delivered, "
            f"log loss {one.random.log_loss:.3f} promised, {one.temporal.log_loss:.3f} delivered"
            for one in found
        )
        return picture(
            figure,
            "Promised and delivered",
            f"Random against temporal split. {told}.",
            "The red mark is what a random split would have promised: customers and times that the model knows.",
        )


def trials(target: str, found: Sequence[Trial]) -> Picture:
    """How far each candidate model is behind the best."""
    ranked = sorted(found, key=lambda trial: trial.behind)
    with drawing(rows_height(len(ranked))) as figure:
        axes = figure.add_subplot()
        for n, trial in enumerate(ranked):
            axes.errorbar(
                trial.behind, n, xerr=trial.error, fmt="o", color=BLUE, markersize=5, capsize=3, elinewidth=1.4
            )
        at = [n for n, trial in enumerate(ranked) if trial.chosen]
        axes.plot([ranked[n].behind for n in at], at, "s", color=VERMILION, markersize=11, mfc="none", mew=2)
        axes.axvline(0, color=INK, linewidth=1)
        rows_axis(axes, [trial.model for trial in ranked])
        axes.set_xlabel("behind the best, in the validation loss")
        axes.locator_params(axis="x", nbins=5)
        told = "; ".join(
            f"{t.model} {t.behind:.4f} behind (error {t.error:.4f}){', chosen' if t.chosen else ''}" for t in ranked
        )
        return picture(
            figure,
            f"Candidate models, {target}",
            f"Candidate models for {target}: {told}.",
            "In the red square: chosen. Lines: one standard error of the paired difference.",
        )


def ladder(target: str, rungs: Sequence[Rung]) -> Picture:
    """Loss against the number of features."""
    found = sorted((rung for rung in rungs if target in rung.behind), key=lambda rung: len(rung.slots))
    counts = [len(rung.slots) for rung in found]
    behind = [rung.behind[target] for rung in found]
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.errorbar(
            counts,
            behind,
            [rung.error.get(target, 0.0) for rung in found],
            fmt="-o",
            color=BLUE,
            markersize=4,
            capsize=2,
            elinewidth=1,
            label="mean, one standard error",
        )
        chosen = [rung for rung in found if rung.chosen]
        label = "chosen" if chosen else None
        axes.plot(
            [len(r.slots) for r in chosen],
            [r.behind[target] for r in chosen],
            "s",
            color=VERMILION,
            markersize=11,
            mfc="none",
            mew=2,
            label=label,
        )
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(xlabel="features", ylabel="loss behind the best rung")
        axes.locator_params(axis="y", nbins=6)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        legend_above(figure)
        told = ", ".join(f"{n} features {b:.4f}" for n, b in zip(counts, behind, strict=True))
        picked = f" Chosen: {len(chosen[0].slots)} features." if chosen else ""
        return picture(
            figure,
            f"Feature ladder, {target}",
            f"Loss behind the best rung for {target}: {told}.{picked}",
            "Few features that lose nothing beyond chance are cheaper to keep and to serve.",
        )


def importance(target: str, found: Sequence[Importance]) -> Picture:
    """What is lost when a slot's values are shuffled."""
    ranked = sorted(found, key=lambda one: -one.lost)
    shown = ranked[:MOST_BARS]
    unit = "deviance" if target == "spend" else "AUC"
    with drawing(rows_height(len(shown), 0.26)) as figure:
        axes = figure.add_subplot()
        axes.barh(
            range(len(shown)),
            [one.lost for one in shown],
            xerr=[one.spread for one in shown],
            height=0.7,
            color=BLUE,
            ecolor=INK,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        axes.axvline(0, color=INK, linewidth=1)
        rows_axis(axes, [one.slot for one in shown])
        axes.set_xlabel(f"{unit} lost when shuffled")
        axes.locator_params(axis="x", nbins=5)
        told = ", ".join(f"{one.slot} {one.lost:.4f}" for one in shown)
        more = f" The {len(shown)} largest of {len(ranked)}." if len(ranked) > len(shown) else ""
        return picture(
            figure,
            f"Importance, {target}",
            f"{unit} lost for {target} when a feature is shuffled: {told}.",
            f"On the test cut-offs; lines: spread of the shuffles.{more}",
        )


def robustness(offer: str, found: Sequence[Damage]) -> Picture:
    """AUC on damaged data."""
    with drawing() as figure:
        axes = figure.add_subplot()
        told = []
        for n, kind in enumerate(dict.fromkeys(one.kind for one in found)):
            damages = sorted((one for one in found if one.kind == kind), key=lambda one: one.share)
            axes.plot(
                [d.share for d in damages],
                [d.auc for d in damages],
                **line_style(n),
                marker=MARKERS[n % len(MARKERS)],
                markersize=5,
                label=short(kind),
            )
            told.append(f"{kind} " + ", ".join(f"{d.share:.0%}: {d.auc:.3f}" for d in damages))
        axes.set(xlabel="share damaged", ylabel="AUC")
        percent_axis(axes.xaxis)
        axes.locator_params(nbins=6)
        legend_above(figure)
        return picture(
            figure,
            f"Robustness, {offer}",
            f"AUC for {offer} on damaged data: {'; '.join(told)}.",
            "The same models on test data that was damaged on purpose.",
        )
