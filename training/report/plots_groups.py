"""Plots of customer segments with their profiles, and of redundant binary attributes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from training.evidence import BinaryAttribute, Segment
from training.report.drawing import (
    BLUE,
    GREY,
    Picture,
    compact,
    drawing,
    legend_above,
    percent_axis,
    picture,
    plain,
    rows_axis,
    rows_height,
)

MAX_TAGS = 20
MAX_PROFILED = 16
MANY_SEGMENTS = 6
TOO_MANY_FOR_FIGURES = 8


def sizes(scheme: str, segments: Sequence[Segment]) -> Picture:
    """Share of the customers in each segment."""
    with drawing(rows_height(len(segments))) as figure:
        axes = figure.add_subplot()
        bars = axes.barh(range(len(segments)), [segment.share for segment in segments], height=0.7, color=BLUE)
        axes.bar_label(bars, [f"{segment.share:.0%}" for segment in segments], padding=3, fontsize=10)
        rows_axis(axes, [f"{n} {segment.name}" for n, segment in enumerate(segments, start=1)])
        axes.set_xlabel("share of the customers")
        axes.margins(x=0.12)
        percent_axis(axes.xaxis)
        text = ", ".join(f"{plain(segment.name)} {segment.share:.0%}" for segment in segments)
        return picture(
            figure, f"Sizes of the segments, {scheme}", f"Segments by {scheme}, share of the customers: {text}."
        )


def profile(scheme: str, segments: Sequence[Segment]) -> Picture | None:
    """Mean of each segment variable by segment, shaded from the lowest to the highest."""
    names = list(dict.fromkeys(name for segment in segments for name in segment.profile))[:MAX_PROFILED]
    if not names:
        return None
    values = np.array([[segment.profile.get(name, np.nan) for segment in segments] for name in names])
    low, high = np.nanmin(values, axis=1, keepdims=True), np.nanmax(values, axis=1, keepdims=True)
    shades = (values - low) / np.where(high > low, high - low, 1)
    colours = colormaps["Blues"]
    with drawing(rows_height(len(names), 0.3, 0.9)) as figure:
        axes = figure.add_subplot()
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            axes.add_patch(
                Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colours(0.05 + 0.8 * shades[row, column]))
            )
            if len(segments) > TOO_MANY_FOR_FIGURES:
                continue
            ink = "#fefefe" if shades[row, column] > 0.6 else "#111111"  # noqa: PLR2004
            axes.text(
                column,
                row,
                compact(float(f"{value:.2g}")),
                ha="center",
                va="center",
                fontsize=8.5 if len(segments) > MANY_SEGMENTS else 9.5,
                color=ink,
            )
        rows_axis(axes, names)
        axes.set_xticks(range(len(segments)), [str(n) for n in range(1, len(segments) + 1)])
        axes.set(xlim=(-0.5, len(segments) - 0.5), xlabel="segment")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        text = "; ".join(
            f"{plain(name)}: " + ", ".join(compact(float(v)) for v in row if not np.isnan(v))
            for name, row in zip(names, values, strict=True)
        )
        alt = f"Mean of each feature in segments 1 to {len(segments)} by {scheme}: {text}."
        return picture(figure, f"Profile of the segments, {scheme}", alt, "Means by segment; darker is higher.")


def redundant_attributes(attributes: Sequence[BinaryAttribute]) -> Picture:
    """Confidence with which other attributes imply one, for the attributes with the highest confidence."""
    shown = sorted(attributes, key=lambda tag: -tag.confidence)[:MAX_TAGS]
    with drawing(rows_height(len(shown), 0.28, 1.3)) as figure:
        axes = figure.add_subplot()
        for kept, colour, label in ((True, BLUE, "kept"), (False, GREY, "left out")):
            at = [n for n, tag in enumerate(shown) if tag.kept is kept]
            axes.barh(
                at,
                [shown[n].confidence for n in at],
                height=0.7,
                color=colour,
                hatch=None if kept else "///",
                edgecolor="#fefefe",
                linewidth=0,
                label=label,
            )
        rows_axis(axes, [tag.tag for tag in shown])
        axes.set(xlim=(0, 1.02), xlabel="confidence of the best rule")
        percent_axis(axes.xaxis)
        legend_above(figure)
        text = ", ".join(
            f"{plain(tag.tag)} {tag.confidence:.0%} ({'kept' if tag.kept else 'left out'})" for tag in shown
        )
        return picture(
            figure,
            "Attributes that others imply",
            f"Highest confidence of a rule by which other attributes imply one: {text}.",
            "" if len(shown) == len(attributes) else f"The {len(shown)} highest of {len(attributes)}.",
        )
