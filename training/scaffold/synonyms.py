"""Synonyms: the names that shops usually give to columns and event types."""

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
"""Usual names, without case and separators, the most specific first."""

VALID_FROM_NAMES: Final = (
    *("validfrom", "validsince", "effectivefrom", "effectivedate", "effectivesince", "dbtvalidfrom", "startdate"),
    *("changedat", "changed", "modifiedat", "modified", "lastmodified", "updatedat", "updated", "lastupdated"),
)
"""Usual names of the time from which a row of attributes is valid, the most specific first."""

PARTS: Final[dict[str, frozenset[str]]] = {
    "event_time": frozenset({"time", "timestamp", "date", "ts", "datetime"}),
    "amount": frozenset({"amount", "revenue", "total", "dollar", "dollars", "sales", "price", "spend", "paid"}),
    "duration_s": frozenset({"duration", "dwell"}),
}
"""Words that suggest a role when they are part of a longer name."""

OTHER_NUMBERS: Final = frozenset(
    {"id", "count", "number", "no", "qty", "quantity", "tax", "discount", "shipping", "items"}
)
"""Words in names of columns that are not amounts of money, even if another word suggests it."""

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
    """The words of a name in lower case: both ``orderDate`` and ``Order Date`` give ``order`` and ``date``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def is_named(name: str, words: tuple[str, ...]) -> bool:
    """Whether a name, or a word in it, is one of ``words``."""
    return plain(name) in words or any(part in words for part in parts(name))


def candidates(role: str, columns: Mapping[str, str], taken: set[str]) -> list[str]:
    """Columns whose name suggests a role, the best match first."""
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
    """An item of a SELECT under a name, without AS if it has that name already."""
    return name if sql.strip('"') == name.strip('"') else f"{sql} AS {name}"


def snake(name: str, taken: set[str]) -> str:
    """A valid feature name made of ``name``, different from those in ``taken``, to which it is added."""
    words = "_".join(parts(name)) or "column"
    words = (words if words[0].isalpha() else f"c_{words}")[:60]
    endings = ("" if i == 1 else f"_{i}" for i in count(1))
    unique = next(words + ending for ending in endings if words + ending not in taken)
    taken.add(unique)
    return unique
