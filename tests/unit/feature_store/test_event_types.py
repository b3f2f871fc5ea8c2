"""Event types that no feature reads: which one was probably meant, and what is not taken for a spelling."""

from __future__ import annotations

import pytest

from feature_store.state.event_types import similar_type

READ = ["purchase", "view", "add_to_cart", "return"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, "purchase") for name in ("Purchase", "PURCHASES", "purchased", " purchase", "purchse")),
        *((name, "purchase") for name in ("Order Completed", "order_placed", "orders/create", "Checkout-Completed")),
        *((name, "view") for name in ("Viewed", "Product Viewed", "view_item")),
        *((name, "add_to_cart") for name in ("addToCart", "Add To Cart", "Product Added")),
        ("returned", "return"),
    ],
)
def test_another_spelling_form_or_usual_name_is_recognised(name: str, meant: str) -> None:
    assert similar_type(name, READ) == meant


@pytest.mark.parametrize("name", ["page_view", "review", "search", "click", "login", "coupon", "", "观看", "e"])
def test_another_type_is_not_taken_for_a_spelling(name: str) -> None:
    assert similar_type(name, READ) is None


def test_the_type_that_is_read_may_itself_be_spelt_otherwise() -> None:
    assert similar_type("purchase", ["Order Completed"]) == "Order Completed"
    assert similar_type("purchase", []) is None
