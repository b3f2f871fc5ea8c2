"""Real redis-servers on ports of 127.0.0.1, which a test may kill and pause: servers, Sentinels, nodes of a cluster."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
import uvloop

from feature_store.embedded_redis import redis_server_command
from feature_store.online.store import RedisStore
from tests.waiting import PATIENCE_S, until

SLOTS = 16384


def free_port() -> int:
    """A port below 50,000, that a cluster's bus (10,000 above) can be added to."""
    for _ in range(1000):
        with socket.create_server(("127.0.0.1", 0)) as item:
            port = int(item.getsockname()[1])
        if port < 50_000:
            return port
    raise AssertionError("no port below 50,000 is free")


def await_that(holds: Callable[[], object]) -> None:
    """Wait until something holds; Redis may not answer meanwhile."""
    until(holds, passing=redis.RedisError)


DURABLE = 'save ""\nappendonly yes\nappendfsync always\n'
DATA = 'save ""\nrepl-diskless-sync-delay 0\n'


class Node:
    """A redis-server of a folder of its own."""

    def __init__(self, folder: Path, *options: str, config: str = DATA) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        (folder / "redis.conf").write_text(f"bind 127.0.0.1\nport {self.port}\ndir {folder}\n{config}")
        self._command = [*redis_server_command(), str(folder / "redis.conf"), *options]
        self.client = redis.Redis(port=self.port, socket_timeout=PATIENCE_S)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        await_that(self.client.ping)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        self.resume()
        self.kill()


def with_store(url: str, act: Callable[[RedisStore], Coroutine[Any, Any, None]], timeout_s: float = PATIENCE_S) -> None:
    """Run ``act`` on the event loop of the server."""

    async def run() -> None:
        store = RedisStore(url, timeout_s)
        try:
            await act(store)
        finally:
            await store.close()

    uvloop.run(run())


class WatchedFiles:
    """A master, its replica and a Sentinel that watches them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.master = _closing(stack, Node(folder / "master"))
        self.replica = _closing(
            stack, Node(folder / "replica", config=f"{DATA}replicaof 127.0.0.1 {self.master.port}\n")
        )
        await_that(lambda: self.replica.client.info("replication")["master_link_status"] == "up")
        watch = (
            f"sentinel monitor shop 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds shop 300\nsentinel failover-timeout shop 2000\n"
        )
        self.sentinel = _closing(stack, Node(folder / "sentinel", "--sentinel", config=watch))
        await_that(lambda: len(self.sentinel.client.sentinel_slaves("shop")) == 1)
        nobody = free_port()
        self.url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{self.sentinel.port}/shop"

    def known_master(self) -> int:
        """The port that the Sentinel has for the master."""
        result: Any = self.sentinel.client.sentinel_masters()
        return int(result["shop"]["port"])


@contextmanager
def watched(folder: Path) -> Iterator[WatchedFiles]:
    with ExitStack() as stack:
        yield WatchedFiles(folder, stack)


@contextmanager
def cluster(folder: Path, size: int) -> Iterator[list[Node]]:
    """Nodes that share the slots evenly."""
    config = f"{DATA}cluster-enabled yes\ncluster-node-timeout 2000\n"
    with ExitStack() as stack:
        nodes = [_closing(stack, Node(folder / str(number), config=config)) for number in range(size)]
        bounds = [SLOTS * number // size for number in range(size + 1)]
        for node, first, end in zip(nodes, bounds, bounds[1:], strict=False):
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        await_that(lambda: all(_is_whole(node, size) for node in nodes))
        yield nodes


def _is_whole(node: Node, size: int) -> bool:
    reported = node.client.execute_command("CLUSTER INFO")
    return reported["cluster_state"] == "ok" and int(reported["cluster_known_nodes"]) == size


def _closing(stack: ExitStack, node: Node) -> Node:
    stack.callback(node.close)
    return node
