"""Access to Redis for commands (synchronous)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online.transport.address import Kind, parse
from feature_store.online.transport.clients import FAILURES, client_at, problem_of
from feature_store.online.transport.server_facts import facts_of_info

TIMEOUT_S: Final = 30.0


class CommandClient:
    """A connection of a command, to use in a ``with`` block.

    Every call may raise StoreUnavailableError, and InputError if Redis does not allow it or must not be used.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        address = parse(url)
        self.is_cluster: Final = address.kind is Kind.CLUSTER
        self.redis: Final[Any] = _with_clear_errors(client_at, address, timeout_s)
        """redis-py's client; call its methods through :meth:`call`."""

    def __enter__(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Return if every server can be used; its eviction policy or permissions may change while it is connected.

        Raises:
            InputError: A server must not be used; the message says why.
            StoreUnavailableError: Redis does not answer.
        """
        nodes = [{"target_nodes": node} for node in self.redis.get_primaries()] if self.is_cluster else [{}]
        for node in nodes:
            if problem := facts_of_info(self.call(self.redis.info, **node)).problem:
                raise _unsuitable(problem)

    def __exit__(self, *_: object) -> None:
        self.redis.close()

    def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a method of the client returns; StoreUnavailableError if Redis does not answer."""
        return _with_clear_errors(method, *args, **options)

    def evaluate(self, script: bytes, keys: Sequence[bytes], *arguments: bytes) -> Any:
        """What a script returns."""
        return self.call(self.redis.eval, script, len(keys), *keys, *arguments)

    def run(self) -> bytes:
        """The run of the redis-server: its ``run_id``, which differs for each start."""
        return str(self.call(self.redis.info, "server")["run_id"]).encode()

    def busy_us(self) -> float:
        """Microseconds that Redis has spent on the server's commands (those called by a script included)."""
        stats = self.call(self.redis.info, "commandstats")
        return float(sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("mget", "eval", "evalsha")))

    def used_memory(self) -> int:
        """Bytes of memory that Redis uses in total."""
        return int(self.call(self.redis.info, "memory")["used_memory"])


def _with_clear_errors(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return method(*args, **options)
    except FAILURES as error:
        if problem := problem_of(error):
            raise _unsuitable(problem) from error
        raise StoreUnavailableError(type(error).__name__) from error


def _unsuitable(problem: str) -> InputError:
    return InputError(f"this Redis cannot be used: {problem}")
