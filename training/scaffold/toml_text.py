"""A proposed config as TOML text that a person goes on with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from feature_store.bundles.bundle import OFFERS
from training.config import Economics

BARE_KEY: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def string(text: str) -> str:
    """A string in one line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def sql(text: str) -> str:
    """SQL on lines of its own, as it is where TOML allows that."""
    if "'''" not in text and all(letter.isprintable() or letter in "\n\t" for letter in text):
        return f"'''\n{text}\n'''"
    escaped = "\n".join(string(line)[1:-1] for line in text.split("\n"))
    return f'"""\n{escaped}\n"""'


def value(given: object) -> str:
    """A number, string or list."""
    if isinstance(given, str):
        return string(given)
    if isinstance(given, (list, tuple)):
        return "[" + ", ".join(value(item) for item in given) + "]"
    if isinstance(given, dict):
        return "{ " + ", ".join(f"{_key(key)} = {value(item)}" for key, item in given.items()) + " }"
    if isinstance(given, float):
        return f"{given:.12g}"
    return str(given)


def section(name: str, values: Mapping[str, object], comment: str = "") -> str:
    """A section; values that are None are left out, those of several lines (SQL) are TOML already."""
    lines = [f"[{name}]" + (f" # {comment}" if comment else "")]
    lines += [f"{_key(key)} = {value(given)}" for key, given in values.items() if given is not None]
    return "\n".join(lines) + "\n"


def source(name: str, queries: Mapping[str, str], paths: Mapping[str, str], rest: Mapping[str, object]) -> str:
    """The section with SQL."""
    lines = [f"[{name}]"]
    if paths:
        lines.append(f"paths = {value(dict(paths))} # folders, relative to this file")
    lines += [f"{key} = {sql(query)}" for key, query in queries.items()]
    lines += [f"{key} = {value(given)}" for key, given in rest.items() if given is not None and given != []]
    return "\n".join(lines) + "\n"


def heading(found: Sequence[str], unsure: Sequence[str]) -> str:
    """The comment that a proposed config begins with."""
    return comments(["Proposed by tidemark init.", *found, *(f"UNSURE: {line}" for line in unsure)])


def comments(lines: Sequence[str]) -> str:
    """Lines of comment; what would break them becomes a blank."""
    return "".join("# " + "".join(letter if letter.isprintable() else " " for letter in line) + "\n" for line in lines)


def economics(typical: float, margin: float) -> dict[str, object]:
    """Placeholders for the sections of economics, in proportion to a typical purchase."""

    def rounded(share: float) -> float:
        return float(f"{max(typical, 1e-6) * share:.2g}")

    return {
        "margin": margin,
        "churn": {
            "contact_cost": rounded(0.004),
            "offer_cost": rounded(0.1),
            "success_rate": 0.2,
            "redemption_rate": 0.1,
            "budget_share": 0.1,
        },
        "propensity": {
            "contact_cost": rounded(0.002),
            "offer_cost": rounded(0.04),
            "success_rate": 0.1,
            "redemption_rate": 0.05,
            "budget_share": 0.2,
        },
    }


def economics_sections(
    figures: Economics, said: Mapping[str, object], assumption: str, offers: Collection[str] = OFFERS
) -> str:
    """The sections of economics for some offers; ``said``: keys of the first one, besides the margin."""
    text = comments(
        [f"ASSUMPTIONS, for you to replace: {assumption}", "(margin: the share of the spend that is profit)"]
    )
    text += section("economics", {**said, "margin": figures.margin})
    for name in offers:
        text += "\n" + section(f"economics.{name}", figures.offer(name).model_dump(), "assumptions, all five")
    return text


def _key(name: str) -> str:
    return name if name and BARE_KEY.issuperset(name) else string(name)
