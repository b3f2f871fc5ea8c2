"""Drawing: figures of one size and palette, as inline SVG that uses the colours and fonts of the page.

Colours are CSS variables, so that a plot follows light mode, dark mode and print; text stays text. The palette is that
of Okabe and Ito, which colour-blind people can distinguish; lines also differ in their dashes.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#1c2128"
MUTED: Final = "#5b6572"
FAINT: Final = "#d5dae0"
BLUE: Final = "#0072b2"
VERMILION: Final = "#d55e00"
GREEN: Final = "#009e73"
PURPLE: Final = "#b0578d"
ORANGE: Final = "#b97f00"
GREY: Final = "#767d86"

VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    BLUE: "--blue",
    VERMILION: "--vermilion",
    GREEN: "--green",
    PURPLE: "--purple",
    ORANGE: "--orange",
    GREY: "--grey",
}
SERIES: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)
DASHES: Final[Sequence[Any]] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)), (0, (3, 1.5)), (0, (8, 3)))
MARKERS: Final = "osD^vX"
WIDTH: Final = 4.6
"""Inches. With one unit per point a figure is 331 units wide, about the width of a phone in pixels."""
MAX_NAME: Final = 24
"""Maximum number of characters of a name in a plot; tables show the full name."""

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tidemark",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.h_pad": 0.06,
}


@dataclass(frozen=True)
class Picture:
    """A drawing with its title, a text alternative with the figures (for screen readers), and a caption."""

    title: str
    svg: Markup
    alt: str
    caption: str


@contextmanager
def drawing(height: float = 3.5) -> Iterator[Figure]:
    """A figure in the report's size and style; call :func:`picture` inside the context."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may be in any script. Glyphs are only measured here; the browser has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def picture(figure: Figure, title: str, alt: str, caption: str = "") -> Picture:
    """The figure as inline SVG, with ``alt`` as its label."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower())
    return Picture(title, Markup(_inline(file.getvalue(), slug, alt)), alt, caption)  # noqa: S704  # drawn here


def _inline(svg: str, slug: str, alt: str) -> str:
    """Remove prolog, metadata and style, and make the ids unique within the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{slug}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{slug}-", svg)
    svg = re.sub(r'\bd="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0] if size else ""}'
    )
    return f'{head} role="img" aria-label="{escape(alt)}">' + svg[svg.index(">") + 1 :]


def plain(name: str) -> str:
    """A name from the shop's data with control characters replaced."""
    return "".join("�" if unicodedata.category(letter)[0] == "C" else letter for letter in name)


def short(name: str) -> str:
    """A name for a plot, shortened in the middle, because names of features often differ only at the end."""
    name = plain(name)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 11]}…{name[-10:]}"


def line_style(n: int) -> dict[str, Any]:
    """Colour and dashes of line number ``n``."""
    return {"color": SERIES[n % len(SERIES)], "linestyle": DASHES[(n + n // len(SERIES)) % len(DASHES)]}


def legend_above(figure: Figure, columns: int = 2) -> None:
    """One legend for the whole figure, above it, where it covers nothing."""
    handles = dict(
        pair[::-1]
        for axes in figure.axes
        for pair in zip(*axes.get_legend_handles_labels(), strict=True)
        if not pair[1].startswith("_")
    )
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=columns,
        columnspacing=1.1,
        labelspacing=0.3,
    )


def percent_axis(axis: Any) -> None:
    """Show shares as percentages."""
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def number_axis(axis: Any) -> None:
    """Use few ticks, and ``k`` for thousands."""
    axis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: compact(value)))


def compact(value: float) -> str:
    """A number in few characters: 12.3M, 45.6k, 1,234, 120, 0.31."""
    size, sign = abs(value), "\N{MINUS SIGN}" if value < 0 else ""
    for least, unit, name in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            scaled = size / unit
            return f"{sign}{scaled:,.0f}{name}" if scaled >= 100 else f"{sign}{scaled:.3g}{name}"  # noqa: PLR2004
    return f"{sign}{size:,.0f}" if size >= 100 or size == int(size) else f"{sign}{size:.3g}"  # noqa: PLR2004


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Put names on the left side, the first on top."""
    axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def rows_height(count: int, each: float = 0.3, around: float = 1.1) -> float:
    """Height in inches of a figure with this number of rows."""
    return around + each * max(count, 2)
