"""Plots of model and feature selection, random against temporal splits, importance and robustness."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from feature_store.bundles.bundle import OFFERS
from training.evidence import Damage, FeatureSubset, Importance, Optimism, Trial
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

MAX_BARS = 15


def optimism(offers: Sequence[Optimism]) -> Picture:
    """AUC and log loss of a random split next to those of the temporal split."""
    with drawing(rows_height(len(offers), 0.32, 1.5)) as figure:
        for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("auc", "log_loss"), strict=True):
            rows = range(len(offers))
            ends = [[getattr(getattr(offer, split), measure) for offer in offers] for split in ("random", "temporal")]
            axes.hlines(rows, *ends, color=INK, linewidth=1)
            axes.plot(ends[0], rows, "D", color=VERMILION, markersize=6, label="random split")
            axes.plot(ends[1], rows, "o", color=BLUE, markersize=7, label="temporal split")
            rows_axis(axes, [line.offer for line in offers])
            axes.set_xlabel({"auc": "AUC (higher is better)", "log_loss": "log loss (lower is)"}[measure])
            axes.margins(x=0.2)
            axes.locator_params(axis="x", nbins=4)
        legend_above(figure)
        text = "; ".join(
            f"{line.offer}: AUC {line.random.auc:.3f} with a random split, {line.temporal.auc:.3f} with the temporal "
            f"one, log loss {line.random.log_loss:.3f} and {line.temporal.log_loss:.3f}"
            for line in offers
        )
        return picture(
            figure,
            "Random and temporal split",
            f"Random against temporal split. {text}.",
            "A random split tests on customers and times that the model has seen, so it looks better than later data.",
        )


def trials(target: str, candidates: Sequence[Trial]) -> Picture:
    """How much worse each candidate model is than the best one."""
    ranked = sorted(candidates, key=lambda trial: trial.behind)
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
        axes.set_xlabel("cross-validation loss above the best")
        axes.locator_params(axis="x", nbins=5)
        text = "; ".join(
            f"{t.model} {t.behind:.4f} (standard error {t.error:.4f}){', chosen' if t.chosen else ''}" for t in ranked
        )
        return picture(
            figure,
            f"Candidate models, {target}",
            f"Loss of the candidate models for {target} above that of the best: {text}.",
            "Red square: the chosen model. Lines: one standard error of the paired difference.",
        )


def feature_subsets(target: str, subsets: Sequence[FeatureSubset]) -> Picture:
    """Loss against the number of features."""
    ranked = sorted((subset for subset in subsets if target in subset.behind), key=lambda subset: len(subset.slots))
    counts = [len(subset.slots) for subset in ranked]
    behind = [subset.behind[target] for subset in ranked]
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.errorbar(
            counts,
            behind,
            [subset.error.get(target, 0.0) for subset in ranked],
            fmt="-o",
            color=BLUE,
            markersize=4,
            capsize=2,
            elinewidth=1,
            label="mean, one standard error",
        )
        chosen = [subset for subset in ranked if subset.chosen]
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
        axes.set(xlabel="features", ylabel="loss above the best subset")
        axes.locator_params(axis="y", nbins=6)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        legend_above(figure)
        text = ", ".join(f"{n} features {b:.4f}" for n, b in zip(counts, behind, strict=True))
        picked = f" Chosen: {len(chosen[0].slots)} features." if chosen else ""
        return picture(
            figure,
            f"Backward elimination, {target}",
            f"Loss above the best feature subset for {target}: {text}.{picked}",
            "Fewer features are cheaper to store and to serve, if the loss is not higher beyond noise.",
        )


def importance(target: str, slots: Sequence[Importance]) -> Picture:
    """Permutation importance of the slots."""
    ranked = sorted(slots, key=lambda slot: -slot.lost)
    shown = ranked[:MAX_BARS]
    unit = "AUC" if target in OFFERS else "deviance"
    with drawing(rows_height(len(shown), 0.26)) as figure:
        axes = figure.add_subplot()
        axes.barh(
            range(len(shown)),
            [slot.lost for slot in shown],
            xerr=[slot.spread for slot in shown],
            height=0.7,
            color=BLUE,
            ecolor=INK,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        axes.axvline(0, color=INK, linewidth=1)
        rows_axis(axes, [slot.slot for slot in shown])
        axes.set_xlabel(f"{unit} lost when shuffled")
        axes.locator_params(axis="x", nbins=5)
        text = ", ".join(f"{slot.slot} {slot.lost:.4f}" for slot in shown)
        more = f" The {len(shown)} largest of {len(ranked)}." if len(ranked) > len(shown) else ""
        return picture(
            figure,
            f"Importance, {target}",
            f"{unit} lost for {target} when a feature is shuffled: {text}.",
            f"On the test rows. Lines: standard deviation over repeated shuffles.{more}",
        )


def robustness(offer: str, damages: Sequence[Damage]) -> Picture:
    """AUC on damaged data."""
    with drawing() as figure:
        axes = figure.add_subplot()
        texts = []
        for n, kind in enumerate(dict.fromkeys(damage.kind for damage in damages)):
            line = sorted((damage for damage in damages if damage.kind == kind), key=lambda damage: damage.share)
            axes.plot(
                [d.share for d in line],
                [d.auc for d in line],
                **line_style(n),
                marker=MARKERS[n % len(MARKERS)],
                markersize=5,
                label=short(kind),
            )
            texts.append(f"{kind} " + ", ".join(f"{d.share:.0%}: {d.auc:.3f}" for d in line))
        axes.set(xlabel="share damaged", ylabel="AUC")
        percent_axis(axes.xaxis)
        axes.locator_params(nbins=6)
        legend_above(figure)
        return picture(
            figure,
            f"Robustness, {offer}",
            f"AUC for {offer} on damaged data: {'; '.join(texts)}.",
            "The same models on test data damaged on purpose.",
        )
