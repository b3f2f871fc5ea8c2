"""Finds the event type that was meant, where an event has a type that no feature reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

MEANINGS: Final = (
    frozenset(
        (
            *("purchase", "order", "sale", "transaction", "buy", "bought"),
            *(
                "ordercompleted",
                "ordercomplete",
                "ordercreated",
                "ordercreate",
                "orderscreate",
                "orderplaced",
                "orderpaid",
            ),
            *("completedorder", "createdorder", "placedorder", "placeorder", "checkoutcompleted", "checkoutcomplete"),
        )
    ),
    frozenset(("view", "productview", "itemview", "viewproduct", "viewitem", "viewedproduct", "vieweditem")),
    frozenset(("cart", "addtocart", "addedtocart", "cartadd", "productadded", "itemadded")),
)
"""Names that analytics tools and shops use for the same type, without case and separators."""
MIN_LIKENESS: Final = 0.85
"""Ratio of equal letters (difflib) from which two names are taken for spellings of one."""
MIN_LETTERS: Final = 5
"""Shorter names are often alike by chance."""


def similar_type(name: str, types: Iterable[str]) -> str | None:
    """The type that a name probably stands for: another spelling, form or usual name of it; None if there is none.

    Examples are "Purchase", "purchased" and "Order Completed" for "purchase".

    Args:
        name: The type of an event.
        types: The types that are read; ``name`` is none of them.
    """
    by_form = {_plain(known): known for known in sorted(types, reverse=True)}
    plain = _plain(name)
    if plain in by_form:
        return by_form[plain]
    for names in MEANINGS:
        forms = set(map(_plain, names))
        if plain in forms and (same := sorted(forms & by_form.keys())):
            return by_form[same[0]]
    alike = get_close_matches(plain, by_form, 1, MIN_LIKENESS) if len(plain) >= MIN_LETTERS else []
    return by_form[alike[0]] if alike else None


def _plain(name: str) -> str:
    """A name without case, separators, and the endings of plural and past."""
    letters = re.sub(r"[\W_]+", "", name.casefold())
    return next((letters.removesuffix(end) for end in ("ed", "s") if _is_form(letters, end)), letters)


def _is_form(letters: str, end: str) -> bool:
    """Whether a name is the plural or past form of another one."""
    return letters.endswith(end) and len(letters) - len(end) >= MIN_LETTERS - 1
