"""The packed values per customer and how events are folded into them."""
