"""Plots of profit: by contacts, by assumed rates and as measured, and of thresholds by value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import TwoSlopeNorm
from matplotlib.patches import Rectangle

from training.evidence import Cell, HoldoutRows, Policy, Value, ValueReliability
from training.report import curves
from training.report.drawing import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    Picture,
    compact,
    drawing,
    legend_above,
    line_style,
    number_axis,
    percent_axis,
    picture,
    rows_axis,
    rows_height,
    short,
)


def profit(offer: str, policies: Sequence[Policy]) -> Picture:
    """Realised profit by number of contacts, for every policy with its interval."""
    with drawing(4.0) as figure:
        axes = figure.add_subplot()
        texts = []
        for n, (name, budgets) in enumerate(_by_policy(policies)):
            contacts = [policy.contacts for policy in budgets]
            style = line_style(n)
            axes.fill_between(
                contacts, [p.low for p in budgets], [p.high for p in budgets], color=style["color"], alpha=0.1, lw=0
            )
            axes.plot(
                contacts,
                [p.realised for p in budgets],
                **style,
                label=short(name),
                lw=2.4 if n == 0 else 1.6,
            )
            best = max(budgets, key=lambda policy: policy.realised)
            texts.append(f"{name} earns most, {compact(best.realised)}, with {best.contacts:,.0f} contacts")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xlabel="customers contacted", ylabel="realised profit")
        number_axis(axes.xaxis)
        number_axis(axes.yaxis)
        legend_above(figure)
        alt = f"Profit by number of contacts for {offer}: {'; '.join(texts)}."
        return picture(
            figure,
            f"Profit by number of contacts, {offer}",
            alt,
            "At each point all policies contact the same number of customers. Bands: 95% intervals from resampled "
            "customers.",
        )


def ahead(offer: str, policies: Sequence[Policy]) -> Picture | None:
    """How much more the dynamic threshold earns than each other policy."""
    others = [(name, rivals) for name, rivals in _by_policy(policies) if all(p.ahead is not None for p in rivals)]
    if not others:
        return None
    with drawing(4.0) as figure:
        axes = figure.add_subplot()
        texts = []
        for n, (name, rivals) in enumerate(others, start=1):
            style = line_style(n)
            shares = [policy.budget_share for policy in rivals]
            low, middle, high = (
                np.array([getattr(p, key) or 0.0 for p in rivals]) for key in ("ahead_low", "ahead", "ahead_high")
            )
            axes.fill_between(shares, low, high, color=style["color"], alpha=0.1, lw=0)
            axes.plot(
                shares,
                middle,
                **style,
                label=f"than {short(name)}",
                marker=MARKERS[n % len(MARKERS)],
                markersize=3.5,
            )
            significant = int((low > 0).sum())
            texts.append(
                f"than {name}, significantly at {significant} of {len(rivals)} budgets, at most "
                f"{compact(float(middle.max()))}"
            )
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(xlabel="share of customers contacted", ylabel="dynamic threshold earns more by")
        percent_axis(axes.xaxis)
        number_axis(axes.yaxis)
        legend_above(figure)
        alt = f"How much more the dynamic threshold earns for {offer}: {'; '.join(texts)}."
        return picture(
            figure,
            f"Compared with other policies, {offer}",
            alt,
            "Above the line the dynamic threshold earns more. If the whole band is above it, the difference is "
            "significant.",
        )


def thresholds(offer: str, rows: HoldoutRows) -> Picture:
    """Distribution of the thresholds in each fifth of the customers by value."""
    fifths = curves.thresholds_by_value(rows)
    with drawing(4.0) as figure:
        axes = figure.add_subplot()
        drawn = axes.bxp([fifth["box"] for fifth in fifths], widths=0.6, patch_artist=True, showfliers=False)
        for part, lines in drawn.items():
            for line in lines:
                line.set(color=INK if part == "medians" else BLUE, linewidth=2.2 if part == "medians" else 1.2)
        for box in drawn["boxes"]:
            box.set(facecolor=BLUE, alpha=0.35)
        labels = [f"{compact(round(f['from'], 1))} to\n{compact(round(f['to'], 1))}" for f in fifths]
        axes.set_xticks(range(1, len(fifths) + 1), labels, fontsize=9.5)
        for n, fifth in enumerate(fifths, start=1):
            axes.text(n, 1.03, f"{fifth['alerts']:.0%}", ha="center", fontsize=10, color=INK)
        axes.text(0.45, 1.11, "alerted:", fontsize=10, color=MUTED)
        axes.spines["left"].set_bounds(0, 1)
        axes.set(
            ylim=(0, 1.18),
            yticks=np.linspace(0, 1, 6),
            xlabel="value of the customer, by fifths",
            ylabel="threshold of the customer",
        )
        axes.grid(visible=False, axis="x")
        text = "; ".join(
            f"{compact(f['from'])} to {compact(f['to'])}: median {f['box']['med']:.2f}, "
            f"never acted on {f['never']:.0%}, alerted {f['alerts']:.0%}"
            for f in fifths
        )
        alt = f"Thresholds for {offer} by fifths of value: {text}."
        return picture(
            figure,
            f"Thresholds by value, {offer}",
            alt,
            "Boxes: the middle half of the customers; lines: 90%. A threshold of 1 means never. On top: share alerted.",
        )


def values(reliability: ValueReliability) -> Picture:
    """Predicted against realised value, by tenths of the customers."""
    bins = reliability.bins
    predicted, realised, low, high = (
        np.array([getattr(tenth, name) for tenth in bins]) for name in ("predicted", "realised", "low", "high")
    )
    with drawing(4.0) as figure:
        axes = figure.add_subplot()
        reach = np.abs(np.array([low, high]) - realised)
        axes.errorbar(predicted, realised, reach, fmt="o", color=BLUE, markersize=4, elinewidth=1, capsize=2)
        largest = float(max(predicted.max(), high.max(), 1e-9))
        axes.plot([0, largest], [0, largest], color=GREY, linewidth=1, linestyle=":", label="realised as predicted")
        axes.set(xlabel="predicted value if won", ylabel="realised value")
        number_axis(axes.xaxis)
        number_axis(axes.yaxis)
        legend_above(figure)
        text = ", ".join(
            f"{compact(p)} predicted, {compact(r)} realised" for p, r in zip(predicted, realised, strict=True)
        )
        return picture(
            figure,
            f"Reliability of values, {reliability.offer}",
            f"Value if won for {reliability.offer}, by tenths of the customers: {text}.",
            "Each point is a tenth of the customers. Whiskers: 95% intervals from resampled customers.",
        )


def grid(offer: str, cells: Sequence[Cell]) -> Picture:
    """Dynamic against single threshold, for other assumed success and redemption rates."""
    xs, ys = (sorted({getattr(cell, key) for cell in cells}) for key in ("success_rate", "redemption_rate"))
    largest = max(abs(cell.ahead) for cell in cells) or 1.0
    colours, norm = colormaps["PuOr"], TwoSlopeNorm(0, -largest, largest)
    with drawing(rows_height(len(ys), 0.44, 1.2)) as figure:
        axes = figure.add_subplot()
        for cell in cells:
            x, y = xs.index(cell.success_rate), ys.index(cell.redemption_rate)
            shade = colours(norm(cell.ahead))
            axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=shade))
            dark = float(np.dot(shade[:3], (0.299, 0.587, 0.114))) < 0.5  # noqa: PLR2004
            text = f"{compact(float(f'{cell.ahead:.2g}'))}\n{_sign(cell)}" if len(xs) <= 7 else _sign(cell)  # noqa: PLR2004
            axes.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=9,
                color="#fefefe" if dark else "#111111",
                linespacing=1.0,
            )
        axes.set(
            xlim=(-0.5, len(xs) - 0.5),
            ylim=(-0.5, len(ys) - 0.5),
            xlabel="assumed success rate",
            ylabel="assumed redemption rate",
        )
        axes.set_xticks(range(len(xs)), [f"{x:.3g}" for x in xs])
        axes.set_yticks(range(len(ys)), [f"{y:.3g}" for y in ys])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        wins, loses = (sum(1 for cell in cells if _sign(cell) == sign) for sign in "▲▼")
        best = max(cells, key=lambda cell: cell.ahead)
        alt = (
            f"Dynamic against the best single threshold for {offer}, over {len(cells)} pairs of assumed rates: "
            f"significantly more in {wins}, less in {loses}, no difference shown in {len(cells) - wins - loses}. "
            f"Largest difference, {compact(best.ahead)}, at success rate {best.success_rate:.3g} "
            f"and redemption rate {best.redemption_rate:.3g}."
        )
        return picture(
            figure,
            f"For other assumed rates, {offer}",
            alt,
            "Profit of the dynamic threshold minus that of the best single one: "
            "▲ significantly more, ▼ significantly less (95%), ○ no difference shown.",
        )


def treatment(values: Sequence[Value]) -> Picture:
    """Value per customer of each policy, estimated from randomised data."""
    policies, estimators = (
        list(dict.fromkeys(getattr(value, key) for value in values)) for key in ("policy", "estimator")
    )
    with drawing(rows_height(len(policies), 0.16 + 0.14 * len(estimators), 1.2)) as figure:
        axes = figure.add_subplot()
        for n, estimator in enumerate(estimators):
            own = [value for value in values if value.estimator == estimator]
            at = [policies.index(value.policy) + (n - (len(estimators) - 1) / 2) * 0.2 for value in own]
            middle = np.array([value.value for value in own])
            reach = np.abs(np.array([[value.low for value in own], [value.high for value in own]]) - middle)
            axes.errorbar(
                middle,
                at,
                xerr=reach,
                fmt=MARKERS[n % len(MARKERS)],
                color=SERIES[n % len(SERIES)],
                markersize=5,
                elinewidth=1.4,
                capsize=2,
                label=short(estimator),
            )
        rows_axis(axes, policies)
        axes.set(xlabel="value per customer")
        number_axis(axes.xaxis)
        legend_above(figure, 4)
        text = "; ".join(
            f"{v.policy} by {v.estimator} {compact(v.value)} ({compact(v.low)} to {compact(v.high)})" for v in values
        )
        return picture(
            figure,
            "Value on randomised data",
            f"Value per customer of each policy: {text}.",
            "Measured, not assumed, because the offer was randomised. Lines: 95% intervals.",
        )


def _by_policy(policies: Sequence[Policy]) -> list[tuple[str, list[Policy]]]:
    """Policies grouped by name, the dynamic threshold first, each by budget."""
    names = list(dict.fromkeys(p.policy for p in sorted(policies, key=lambda p: p.ahead is not None)))
    return [(name, sorted((p for p in policies if p.policy == name), key=lambda p: p.budget_share)) for name in names]


def _sign(cell: Cell) -> str:
    return "▲" if cell.low > 0 else "▼" if cell.high < 0 else "○"
