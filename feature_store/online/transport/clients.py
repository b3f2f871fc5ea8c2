"""redis-py's own clients, for commands (synchronous): of a server, of whoever is master now, and of a cluster."""

from __future__ import annotations

from typing import Any, Final

import redis
import redis.cluster
import redis.sentinel
from redis.exceptions import RedisClusterException, RedisError

from feature_store.online.transport.address import Address, Kind
from feature_store.online.transport.connections import clear_url_errors, options_of

CONNECT_S: Final = 5.0
FAILURES: Final = (RedisError, RedisClusterException, OSError, UnicodeError)
"""What a client raises where Redis does not answer; UnicodeError for a host name that can be none."""


def client_at(address: Address, timeout_s: float) -> Any:
    """A client; RedisError where it asks at once and is not answered."""
    patience: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": CONNECT_S}
    with clear_url_errors():
        if address.kind is Kind.SENTINEL:
            return _of_master(address, patience)
        if address.kind is Kind.CLUSTER:
            return _of_cluster(address, patience)
        return _checked(redis.Redis.from_url(address.url, **patience))


def _of_master(address: Address, patience: dict[str, Any]) -> Any:
    sentinels = redis.sentinel.Sentinel(())
    options: dict[str, Any] = {"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S}
    sentinels.sentinels += [redis.Redis(**options_of(address.sentinel_at(*host)), **options) for host in address.hosts]
    return sentinels.master_for(address.name, **_without_place(address), **patience)


def _of_cluster(address: Address, patience: dict[str, Any]) -> Any:
    nodes = [redis.cluster.ClusterNode(*host) for host in address.hosts]
    return _ClusterClient(startup_nodes=nodes, **_without_place(address), **patience)


def _without_place(address: Address) -> dict[str, Any]:
    url = address.at(*address.hosts[0])
    _checked(redis.Redis.from_url(url))
    options = options_of(url)
    return {name: value for name, value in options.items() if name not in ("host", "port")}


def _checked(client: Any) -> Any:
    client.connection_pool.make_connection()  # refuses unknown options only now
    return client


class _ClusterClient(redis.cluster.RedisCluster):
    """Takes commands for many keys apart, as those of a single server are given."""

    def mget(self, keys: Any, *args: Any) -> Any:
        """Values in the order of the keys."""
        return self.mget_nonatomic(keys, *args)

    def mset(self, mapping: Any) -> Any:
        """Each key is set, not all at the same time."""
        return self.mset_nonatomic(mapping)
