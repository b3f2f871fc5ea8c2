"""Names that shops usually give to columns and to kinds of events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from typing import Final

NAMES: Final[dict[str, tuple[str, ...]]] = {
    "event_time": (
        *("eventtime", "eventtimestamp", "timestamp", "ts", "datetime", "orderdatetime", "orderedat", "orderdate"),
        *("ordertime", "purchasedate", "purchasetime", "transactiondate", "transactiontime", "transactiontimestamp"),
        *(
            "invoicedate",
            "eventdate",
            "visitdate",
            "sessionstart",
            "occurredat",
            "createdat",
            "created",
            "time",
            "date",
        ),
        *("day", "servertime", "visitstarttime", "orderpurchasetimestamp"),
    ),
    "customer_id": (
        *(
            "customerid",
            "customeruniqueid",
            "customer",
            "custid",
            "cust",
            "customernumber",
            "customerno",
            "customerkey",
        ),
        *("clientid", "client", "userid", "user", "uid", "memberid", "member", "accountid", "account", "householdid"),
        *(
            "household",
            "householdkey",
            "shopperid",
            "shopper",
            "buyerid",
            "buyer",
            "consumerid",
            "contactid",
            "personid",
        ),
        *("visitorid", "visitor", "fullvisitorid", "cid", "usersid", "cardid"),
    ),
    "event_type": (
        *("eventtype", "event", "eventname", "behavior", "behaviour", "behaviortype", "behaviourtype", "action"),
        *("actiontype", "activity", "activitytype", "interaction", "interactiontype", "type", "kind"),
    ),
    "amount": (
        *("amount", "ordertotal", "totalamount", "totalprice", "grandtotal", "total", "revenue", "salesvalue", "sales"),
        *(
            "dollarvalue",
            "dollars",
            "spend",
            "spent",
            "amountspent",
            "paymentvalue",
            "payment",
            "paid",
            "turnover",
            "gmv",
        ),
        *("netamount", "subtotal", "value", "price", "unitprice", "itemprice"),
    ),
    "duration_s": (
        *("durations", "duration", "dwell", "dwelltime", "dwells", "timespent", "timeonpage", "timeonsite", "seconds"),
        *("sessionduration", "durationseconds", "durationsec", "durationms", "dwellms", "dwelltimems"),
    ),
    "item_id": (
        *("itemid", "item", "productid", "product", "sku", "stockcode", "articleid", "article", "productcode", "asin"),
        *("contentid", "isbn", "productsku", "itemcode"),
    ),
    "event_id": (
        *("eventid", "eventuuid", "orderid", "ordernumber", "orderno", "transactionid", "invoiceno", "invoiceid"),
        *("invoice", "basketid", "receiptid", "uuid", "id"),
    ),
    "channel": ("channel", "source", "medium", "platform", "device", "devicetype", "trafficsource", "utmsource"),
    "text": ("text", "comment", "comments", "review", "reviewtext", "feedback", "message", "body"),
}
"""Usual names, without case and separators, the most telling first."""

PARTS: Final[dict[str, frozenset[str]]] = {
    "event_time": frozenset({"time", "timestamp", "date", "ts", "datetime"}),
    "amount": frozenset({"amount", "revenue", "total", "dollar", "dollars", "sales", "price", "spend", "paid"}),
    "duration_s": frozenset({"duration", "dwell"}),
}
"""Words of longer names that tell a role as well."""

OTHER_NUMBERS: Final = frozenset(
    {"id", "count", "number", "no", "qty", "quantity", "tax", "discount", "shipping", "items"}
)
"""Words of names that are no sum of money, whatever else they say."""

QUANTITY: Final = ("quantity", "qty", "units")
BUYING: Final = (
    "purchase",
    "transaction",
    "order",
    "buy",
    "bought",
    "sale",
    "checkout",
    "payment",
    "paid",
    "conversion",
)
VIEWING: Final = (
    "view",
    "pageview",
    "productview",
    "detail",
    "visit",
    "click",
    "browse",
    "impression",
    "pv",
    "session",
)
CARTING: Final = ("cart", "addtocart", "basket", "atc")


def plain(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def parts(name: str) -> list[str]:
    """The words of a name, lower case: of ``orderDate`` and ``Order Date`` alike ``order`` and ``date``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def is_named(name: str, words: tuple[str, ...]) -> bool:
    """Whether a name, or a word of it, is one of some."""
    return plain(name) in words or any(part in words for part in parts(name))


def candidates(role: str, columns: Mapping[str, str], taken: set[str]) -> list[str]:
    """Columns whose name tells a role, the most telling first."""
    order = {name: rank for rank, name in enumerate(NAMES[role])}
    ranked = []
    for i, name in enumerate(columns):
        if name in taken:
            continue
        if plain(name) in order:
            ranked.append((order[plain(name)], i, name))
        elif PARTS.get(role, frozenset()) & set(parts(name)) and not OTHER_NUMBERS & set(parts(name)):
            ranked.append((len(order), i, name))
    return [name for _, _, name in sorted(ranked)]


def selected(sql: str, name: str) -> str:
    """A column of a SELECT under a new name, written short where it has that name already."""
    return name if sql.strip('"') == name.strip('"') else f"{sql} AS {name}"


def snake(name: str, taken: set[str]) -> str:
    """A name that a feature may have and that is not ``taken``, and takes it."""
    words = "_".join(parts(name)) or "column"
    words = (words if words[0].isalpha() else f"c_{words}")[:60]
    endings = ("" if i == 1 else f"_{i}" for i in count(1))
    found = next(words + ending for ending in endings if words + ending not in taken)
    taken.add(found)
    return found
