"""Where Redis is, as a URL says it: one server, a master that Sentinels know by name, or a cluster.

======================================================================= ======================
URL                                                                     what
======================================================================= ======================
``redis://[user:password@]host:port[/db]``, ``unix:///path``            one server
``redis+sentinel://[user:password@]host:port[,host:port…]/name[/db]``   whoever is master now
``redis+cluster://[user:password@]host:port[,host:port…]``              the cluster they are of
======================================================================= ======================

``rediss…`` is the same over TLS. What stands behind a ``?`` is for redis-py, but for ``sentinel_username`` and
``sentinel_password``, which are for the Sentinels themselves. An error never repeats a URL: it may hold a password.
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
MOST_PORT: Final = 65535
_SEVERAL: Final = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<login>[^@/?#]*)@)?(?P<hosts>[^@/?#]+)"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:,\s]+)(?::(?P<port>[0-9]{1,5}))?")
_SENTINELS_OWN: Final = ("sentinel_username", "sentinel_password")


class Kind(Enum):
    """What is at an address."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


Host = tuple[str, int]


@dataclass(frozen=True)
class Address:
    """Where Redis is. ``hosts``: Sentinels, or some nodes of a cluster; none where ``url`` is that of a server."""

    kind: Kind
    url: str = field(default="", repr=False)
    hosts: tuple[Host, ...] = ()
    name: str = ""
    """That the master has for the Sentinels."""
    _before: str = field(default="", repr=False)
    _after: str = field(default="", repr=False)
    _sentinels: tuple[str, str] = field(default=("", ""), repr=False)

    def at(self, host: str, port: int) -> str:
        """URL of a server that was found, as redis-py takes it."""
        return f"{self._before}{_bracketed(host)}:{port}{self._after}"

    def sentinel_at(self, host: str, port: int) -> str:
        """URL of one of the Sentinels, as redis-py takes it."""
        scheme, (user, password) = self._before.partition("://")[0], self._sentinels
        login = f"{quote(user, '')}:{quote(password, '')}@" if user or password else ""
        return f"{scheme}://{login}{_bracketed(host)}:{port}"


def parse(url: str) -> Address:
    """What a URL says; InputError where it cannot be one."""
    if "+" not in url.partition("://")[0]:
        return Address(Kind.SERVER, url)
    found = _SEVERAL.fullmatch(url)
    if found is None:
        raise _invalid()
    kind = Kind(found["kind"])
    name, _, db = (found["path"] or "").removeprefix("/").partition("/")
    if kind is Kind.CLUSTER:
        name, db = "", name
    if (
        bool(name) is not (kind is Kind.SENTINEL)
        or not (db.isdigit() or not db)
        or (kind is Kind.CLUSTER and int(db or 0))
    ):
        raise _invalid(kind)
    options = parse_qsl(found["query"] or "", keep_blank_values=True)
    own = dict(options)
    rest = urlencode([(key, value) for key, value in options if key not in _SENTINELS_OWN])
    login = f"{found['login']}@" if found["login"] else ""
    return Address(
        kind,
        hosts=tuple(_host(each, kind) for each in found["hosts"].split(",")),
        name=name,
        _before=f"{found['scheme']}://{login}",
        _after=(f"/{db}" if db else "") + (f"?{rest}" if rest else ""),
        _sentinels=(own.get("sentinel_username", ""), own.get("sentinel_password", "")),
    )


def _host(text: str, kind: Kind) -> Host:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or (SENTINEL_PORT if kind is Kind.SENTINEL else PORT)) if found else 0
    if found is None or not 0 < port <= MOST_PORT:
        raise _invalid(kind)
    return found["host"].strip("[]"), port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _invalid(kind: Kind = Kind.SERVER) -> InputError:
    several = "[user:password@]host:port[,host:port…]"
    wanted = {
        Kind.SERVER: f"redis://[user:password@]host:port[/db], redis+sentinel://{several}/name[/db] or "
        f"redis+cluster://{several}",
        Kind.SENTINEL: f"redis+sentinel://{several}/name[/db], with the name that the Sentinels have for the master",
        Kind.CLUSTER: f"redis+cluster://{several}, without a database: a cluster has one only",
    }
    return InputError(f"the Redis URL is not valid: write {wanted[kind]}")
