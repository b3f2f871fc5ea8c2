"""Whether an address is on this machine: servers ask it of where they listen, and clients of where a token goes."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final

_RESOLVER: Final = re.compile(r"^dns:(//[^/]*/)?|^ipv[46]:")
_LOCAL_SCHEMES: Final = ("unix:", "unix-abstract:")


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's own. Of names only localhost is, whatever others resolve to."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def is_local_target(target: str) -> bool:
    """Whether a gRPC target (host:port, or with a scheme) is on this machine; False if that is not certain."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    addresses = _RESOLVER.sub("", target).split(",")
    return all(is_loopback(_host(address)) for address in addresses)


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]
