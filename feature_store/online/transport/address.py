"""URLs of Redis: a single server, a master that Sentinels know by name, or a cluster.

======================================================================= ======================
URL                                                                     meaning
======================================================================= ======================
``redis://[user:password@]host:port[/db]``, ``unix:///path``            one server
``redis+sentinel://[user:password@]host:port[,host:port…]/name[/db]``   the current master
``redis+cluster://[user:password@]host:port[,host:port…]``              the cluster
======================================================================= ======================

``rediss…`` is the same over TLS. Options after ``?`` are passed to redis-py, except ``sentinel_username`` and
``sentinel_password``, which are used for the Sentinels. Errors never repeat a URL, which may contain a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from feature_store.errors import InputError

SENTINEL_PORT: Final = 26379
PORT: Final = 6379
MAX_PORT: Final = 65535
_SEVERAL: Final = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<login>[^@/?#]*)@)?(?P<hosts>[^@/?#]+)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:,\s]+)(?::(?P<port>[0-9]{1,5}))?")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


class Kind(Enum):
    """What an address refers to."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


Host = tuple[str, int]


@dataclass(frozen=True)
class Address:
    """Where Redis is.

    Attributes:
        kind: What the address refers to.
        url: URL of a single server; empty otherwise.
        hosts: Sentinels, or some nodes of a cluster; empty for a single server.
        name: Name of the master among the Sentinels.
    """

    kind: Kind
    url: str = field(default="", repr=False)
    hosts: tuple[Host, ...] = ()
    name: str = ""
    _before: str = field(default="", repr=False)
    _after: str = field(default="", repr=False)
    _sentinels: tuple[str, str] = field(default=("", ""), repr=False)

    def at(self, host: str, port: int) -> str:
        """redis-py's URL of a server that Sentinels or the cluster named."""
        return f"{self._before}{_bracketed(host)}:{port}{self._after}"

    def sentinel_at(self, host: str, port: int) -> str:
        """redis-py's URL of one of the Sentinels."""
        scheme, (user, password) = self._before.partition("://")[0], self._sentinels
        login = f"{quote(user, '')}:{quote(password, '')}@" if user or password else ""
        return f"{scheme}://{login}{_bracketed(host)}:{port}"


def parse(url: str) -> Address:
    """The address in a URL; InputError if it is not valid."""
    if "+" not in url.partition("://")[0]:
        return Address(Kind.SERVER, url)
    parts = _SEVERAL.fullmatch(url)
    if parts is None:
        raise _invalid()
    kind = Kind(parts["kind"])
    name, _, db = (parts["path"] or "").removeprefix("/").partition("/")
    if kind is Kind.CLUSTER:
        name, db = "", name
    if (
        bool(name) is not (kind is Kind.SENTINEL)
        or not (db.isdigit() or not db)
        or (kind is Kind.CLUSTER and int(db or 0))
    ):
        raise _invalid(kind)
    options = parse_qsl(parts["query"] or "", keep_blank_values=True)
    by_name = dict(options)
    rest = urlencode([(key, value) for key, value in options if key not in _SENTINEL_OPTIONS])
    login = f"{parts['login']}@" if parts["login"] else ""
    return Address(
        kind,
        hosts=tuple(_host(each, kind) for each in parts["hosts"].split(",")),
        name=name,
        _before=f"{parts['scheme']}://{login}",
        _after=(f"/{db}" if db else "") + (f"?{rest}" if rest else ""),
        _sentinels=(by_name.get("sentinel_username", ""), by_name.get("sentinel_password", "")),
    )


def _host(text: str, kind: Kind) -> Host:
    parts = _HOST.fullmatch(text)
    port = int(parts["port"] or (SENTINEL_PORT if kind is Kind.SENTINEL else PORT)) if parts else 0
    if parts is None or not 0 < port <= MAX_PORT:
        raise _invalid(kind)
    return parts["host"].strip("[]"), port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _invalid(kind: Kind = Kind.SERVER) -> InputError:
    several = "[user:password@]host:port[,host:port…]"
    wanted = {
        Kind.SERVER: f"redis://[user:password@]host:port[/db], redis+sentinel://{several}/name[/db] or "
        f"redis+cluster://{several}",
        Kind.SENTINEL: f"redis+sentinel://{several}/name[/db], with the name of the master among the Sentinels",
        Kind.CLUSTER: f"redis+cluster://{several}, without a database: a cluster has only one",
    }
    return InputError(f"the Redis URL is not valid: write {wanted[kind]}")
