"""Line charts as inline SVG whose colours are the page's; small enough to need no library."""

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
MOST_DOTS: Final = 24
NUMBER: Final = "{:,.10g}"

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart: ``svg`` for the page, its title, a caption, and the names of its lines with colour and dashes."""

    title: str
    caption: str
    svg: Markup
    legend: list[tuple[str, str, str]]


class Scale:
    """From values to places on an axis, linear or logarithmic, with ticks."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self._to: Callable[[float], float] = math.log10 if log else float
        self._low, self._high = self._to(low), self._to(high)
        self._start, self._stop = start, stop
        self.ticks: Ticks = _log_ticks(low, high) if log else _ticks(low, high)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (self._to(value) - self._low) / ((self._high - self._low) or 1.0)
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
    """A chart of lines, each under its name; ``mark`` is a level that is drawn across. Names of axes: x, y."""
    lines = {name: points for name, points in lines.items() if points}
    every = [point for points in lines.values() for point in points]
    tops = [y for _, y in every] + ([mark] if mark is not None else [])
    low = 10.0 ** math.floor(math.log10(max(1e-3, min(tops)))) if log_y else 0.0
    high = 10.0 ** math.ceil(math.log10(max(tops) * 1.001)) if log_y else (max(tops) * 1.05 or 1.0)
    across = Scale(min(x for x, _ in every), max(x for x, _ in every), LEFT, WIDTH - RIGHT)
    if x_ticks:
        across.ticks = x_ticks
    up = Scale(low, high, HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [_frame(across, up, axes)]
    if mark is not None:
        at = up(mark)
        parts.append(f'<path style="stroke: var(--grey)" stroke-dasharray="3 3" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
    for (colour, dashes), points in zip(zip(COLOURS, DASHES, strict=True), lines.values(), strict=False):
        parts.append(_line([(across(x), up(max(y, low))) for x, y in points], colour, dashes))
    label = escape(f"{title}: {axes[1]} by {axes[0]}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    legend = [(name, *style) for name, style in zip(lines, zip(COLOURS, DASHES, strict=True), strict=False)]
    return Chart(title, caption, Markup(svg), legend if len(lines) > 1 else [])  # noqa: S704  # drawn here


def _frame(across: Scale, up: Scale, axes: tuple[str, str]) -> str:
    floor = HEIGHT - BOTTOM
    parts = [f'<path style="stroke: var(--muted)" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>']
    for value, text in up.ticks:
        at = up(value)
        parts.append(f'<path style="stroke: var(--faint)" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in across.ticks:
        parts.append(f'<text x="{across(value):.1f}" y="{floor + 15}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes[0])}</text>')
    place = f'transform="translate(12 {(TOP + floor) / 2}) rotate(-90)"'
    return "".join([*parts, f'<text {place} text-anchor="middle">{escape(axes[1])}</text>'])


def _line(points: Sequence[Point], colour: str, dashes: str) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dotted = points if len(points) <= MOST_DOTS else ()
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dotted)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    line = f'<path style="stroke: var({colour})" stroke-width="2"{dash} d="M{path}"/>'
    return f'{line}<g style="fill: var({colour})">{dots}</g>'


def _ticks(low: float, high: float) -> Ticks:
    raw = ((high - low) or 1.0) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= raw)
    first = math.ceil(low / step - 1e-9)
    return [(at * step, NUMBER.format(at * step)) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> Ticks:
    return [
        (10.0**power, NUMBER.format(10.0**power))
        for power in range(round(math.log10(low)), round(math.log10(high)) + 1)
    ]
