"""Drawing: figures of one size and palette, as SVG whose colours and fonts are the page's.

Colours are written as CSS variables, so that a plot follows light, dark and print; text stays text. The palette is
Okabe and Ito's, which colour-blind people can tell apart; lines differ in their dashes too.
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
"""Inches. At a point a unit a figure is 331 units wide: about as many pixels as a phone gives it."""
LONGEST: Final = 24
"""Characters of a name in a plot; tables have it whole."""

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
    """A drawing with its title, what it shows in words and figures (for who cannot see it), and a line below it."""

    title: str
    svg: Markup
    alt: str
    caption: str


@contextmanager
def drawing(height: float = 3.5) -> Iterator[Figure]:
    """A figure of the report's size and style; what is drawn must be turned into a Picture inside."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may be in any script. The browser has the glyphs; here they are only measured.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def picture(figure: Figure, title: str, alt: str, caption: str = "") -> Picture:
    """The figure as inline SVG. ``alt`` becomes its label."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower())
    return Picture(title, Markup(_inline(file.getvalue(), slug, alt)), alt, caption)  # noqa: S704  # drawn here


def _inline(svg: str, slug: str, alt: str) -> str:
    """Without head, metadata and style of its own; ids are told apart from those of other figures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{slug}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{slug}-", svg)
    svg = re.sub(r'\bd="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0] if size else ""}'
    )
    return f'{head} role="img" aria-label="{escape(alt)}">' + svg[svg.index(">") + 1 :]


def plain(name: str) -> str:
    """A name of the shop's without characters that no document may hold."""
    return "".join("�" if unicodedata.category(letter)[0] == "C" else letter for letter in name)


def short(name: str) -> str:
    """A name for a plot. Where it is cut its end stays, because that is where names of features differ."""
    name = plain(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}…{name[-10:]}"


def line_style(n: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line."""
    return {"color": SERIES[n % len(SERIES)], "linestyle": DASHES[(n + n // len(SERIES)) % len(DASHES)]}


def legend_above(figure: Figure, columns: int = 2) -> None:
    """One legend for the whole figure, above it, where it covers nothing."""
    found = dict(
        pair[::-1]
        for axes in figure.axes
        for pair in zip(*axes.get_legend_handles_labels(), strict=True)
        if not pair[1].startswith("_")
    )
    figure.legend(
        list(found.values()), list(found), loc="outside upper left", ncols=columns, columnspacing=1.1, labelspacing=0.3
    )


def percent_axis(axis: Any) -> None:
    """Shares as percentages."""
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def number_axis(axis: Any) -> None:
    """Few ticks, thousands with a ``k``."""
    axis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: compact(value)))


def compact(value: float) -> str:
    """A figure in few characters: 12.3M, 45.6k, 1,234, 120, 0.31."""
    size, sign = abs(value), "\N{MINUS SIGN}" if value < 0 else ""
    for least, unit, name in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            scaled = size / unit
            return f"{sign}{scaled:,.0f}{name}" if scaled >= 100 else f"{sign}{scaled:.3g}{name}"  # noqa: PLR2004
    return f"{sign}{size:,.0f}" if size >= 100 or size == int(size) else f"{sign}{size:.3g}"  # noqa: PLR2004


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def rows_height(count: int, each: float = 0.3, around: float = 1.1) -> float:
    """Inches for so many rows."""
    return around + each * max(count, 2)
