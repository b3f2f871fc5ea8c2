"""The packed values stored per customer, and how events change them."""
