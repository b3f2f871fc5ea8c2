"""Line charts as inline SVG in the colours of the page; few enough lines to need no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH: Final = 360
HEIGHT: Final = 230
LEFT: Final = 52
RIGHT: Final = 14
TOP: Final = 10
BOTTOM: Final = 40
COLOURS: Final = ("--blue", "--vermilion", "--green", "--purple")
DASHES: Final = ("", "6 3", "2 2", "8 3 2 3")
TICKS: Final = 5
MAX_DOTS: Final = 24
"""Lines with more points are drawn without dots."""
NUMBER: Final = "{:,.10g}"

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart: title, caption, SVG, and for each line its name, colour and dashes."""

    title: str
    caption: str
    svg: Markup
    legend: list[tuple[str, str, str]]


class Scale:
    """Maps values to positions on an axis, linear or logarithmic, and has its ticks."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self._transform: Callable[[float], float] = math.log10 if log else float
        self._low, self._high = self._transform(low), self._transform(high)
        self._start, self._stop = start, stop
        self.ticks: Ticks = _log_ticks(low, high) if log else _ticks(low, high)

    def __call__(self, value: float) -> float:
        """The position of a value."""
        share = (self._transform(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._start + share * (self._stop - self._start)


def draw(
    title: str,
    caption: str,
    lines: Mapping[str, Sequence[Point]],
    axes: tuple[str, str],
    *,
    x_ticks: Ticks = (),
    log_y: bool = False,
    mark: float | None = None,
) -> Chart:
    """Draw a chart.

    Args:
        title: title of the chart.
        caption: text below the title.
        lines: name -> points (x, y); at least one line must have points.
        axes: names of the x axis and the y axis.
        x_ticks: ticks of the x axis as (x, text); chosen by default.
        log_y: whether the y axis is logarithmic.
        mark: a level that is drawn as a dashed line.
    """
    lines = {name: points for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points] + ([mark] if mark is not None else [])
    low = 10.0 ** math.floor(math.log10(max(1e-3, min(ys)))) if log_y else 0.0
    high = 10.0 ** math.ceil(math.log10(max(ys) * 1.001)) if log_y else (max(ys) * 1.05 or 1.0)
    x_scale = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    if x_ticks:
        x_scale.ticks = x_ticks
    y_scale = Scale(low, high, HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [_frame(x_scale, y_scale, axes)]
    if mark is not None:
        y = y_scale(mark)
        parts.append(f'<path style="stroke: var(--grey)" stroke-dasharray="3 3" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    for (colour, dashes), points in zip(zip(COLOURS, DASHES, strict=True), lines.values(), strict=False):
        parts.append(_line([(x_scale(x), y_scale(max(y, low))) for x, y in points], colour, dashes))
    label = escape(f"{title}: {axes[1]} by {axes[0]}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    legend = [(name, *style) for name, style in zip(lines, zip(COLOURS, DASHES, strict=True), strict=False)]
    return Chart(title, caption, Markup(svg), legend if len(lines) > 1 else [])  # noqa: S704  # drawn here


def _frame(x_scale: Scale, y_scale: Scale, axes: tuple[str, str]) -> str:
    floor = HEIGHT - BOTTOM
    parts = [f'<path style="stroke: var(--muted)" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>']
    for value, text in y_scale.ticks:
        y = y_scale(value)
        parts.append(f'<path style="stroke: var(--faint)" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x_scale.ticks:
        parts.append(f'<text x="{x_scale(value):.1f}" y="{floor + 15}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes[0])}</text>')
    place = f'transform="translate(12 {(TOP + floor) / 2}) rotate(-90)"'
    return "".join([*parts, f'<text {place} text-anchor="middle">{escape(axes[1])}</text>'])


def _line(points: Sequence[Point], colour: str, dashes: str) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dotted = points if len(points) <= MAX_DOTS else ()
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dotted)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    line = f'<path style="stroke: var({colour})" stroke-width="2"{dash} d="M{path}"/>'
    return f'{line}<g style="fill: var({colour})">{dots}</g>'


def _ticks(low: float, high: float) -> Ticks:
    raw = ((high - low) or 1.0) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= raw)
    first = math.ceil(low / step - 1e-9)
    return [(n * step, NUMBER.format(n * step)) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> Ticks:
    return [
        (10.0**power, NUMBER.format(10.0**power))
        for power in range(round(math.log10(low)), round(math.log10(high)) + 1)
    ]
