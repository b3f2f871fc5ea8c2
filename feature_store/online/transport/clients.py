"""redis-py's clients for commands (synchronous): of a single server, of the current master, and of a cluster."""

from __future__ import annotations

from typing import Any, Final

import redis
import redis.cluster
import redis.sentinel
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from feature_store.online.transport.address import Address, Kind
from feature_store.online.transport.connections import clear_url_errors, options_of
from feature_store.online.transport.server_facts import CHECK, facts_of, refusal_text, refused_command


class UnsuitableServerError(RedisError):
    """A server was connected to that must not be used; the message says why."""


CONNECT_S: Final = 5.0
FAILURES: Final = (RedisError, RedisClusterException, OSError, UnicodeError)
"""What a client raises if Redis does not answer; UnicodeError for an invalid host name."""


def client_at(address: Address, timeout_s: float) -> Any:
    """A client for an address; RedisError if it connects at once and there is no answer."""
    timeouts: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": CONNECT_S}
    with clear_url_errors():
        if address.kind is Kind.SENTINEL:
            return _of_master(address, timeouts)
        if address.kind is Kind.CLUSTER:
            return _of_cluster(address, timeouts)
        return _checked(redis.Redis.from_url(address.url, redis_connect_func=_connect, **timeouts))


def check(connection: Any) -> None:
    """Refuse the server of a new connection, which may be another one after a failover, if it must not be used.

    Raises:
        RedisError: It must not be used (UnsuitableServerError), or does not answer.
    """
    connection.send_packed_command(connection.pack_commands(CHECK))
    replies = [_reply(connection) for _ in CHECK]
    if isinstance(replies[0], RedisError):
        raise replies[0]
    if problem := facts_of(replies).problem:
        raise UnsuitableServerError(problem)


def problem_of(error: Exception) -> str:
    """Why a server must not be used, if an error says so; empty if it says something else."""
    if isinstance(error, UnsuitableServerError):
        return str(error)
    return refusal_text(error) if isinstance(error, RedisError) and refused_command(error) else ""


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _connect(connection: Any) -> None:
    connection.on_connect()
    check(connection)


def _of_master(address: Address, timeouts: dict[str, Any]) -> Any:
    sentinels = redis.sentinel.Sentinel(())
    options: dict[str, Any] = {"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S}
    sentinels.sentinels += [redis.Redis(**options_of(address.sentinel_at(*host)), **options) for host in address.hosts]
    return sentinels.master_for(address.name, **_without_place(address), redis_connect_func=_connect, **timeouts)


def _of_cluster(address: Address, timeouts: dict[str, Any]) -> Any:
    nodes = [redis.cluster.ClusterNode(*host) for host in address.hosts]
    return _ClusterClient(startup_nodes=nodes, **_without_place(address), redis_connect_func=check, **timeouts)


def _without_place(address: Address) -> dict[str, Any]:
    url = address.at(*address.hosts[0])
    _checked(redis.Redis.from_url(url))
    options = options_of(url)
    return {name: value for name, value in options.items() if name not in ("host", "port")}


def _checked(client: Any) -> Any:
    client.connection_pool.make_connection()  # unknown options are rejected only here
    return client


class _ClusterClient(redis.cluster.RedisCluster):
    """Splits commands for many keys by slot, so that they are used as with a single server."""

    def mget(self, keys: Any, *args: Any) -> Any:
        """Values in the order of the keys."""
        return self.mget_nonatomic(keys, *args)

    def mset(self, mapping: Any) -> Any:
        """Set every key, not all at the same time."""
        return self.mset_nonatomic(mapping)
