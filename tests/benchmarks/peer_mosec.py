"""A peer: the same job on mosec, where that is installed (``pip install mosec``; no dependency of the project)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.benchmarks import raw_http
from tests.benchmarks.setting import Server, server

START_S: Final = 30.0


def mosec_server(
    registry: Path, url: str, say: Callable[[str], object] = print
) -> AbstractContextManager[Server] | None:
    """mosec with one worker, ready to answer; None where it is not installed, having said so in a line."""
    if find_spec("mosec") is None:
        say("no mosec peer: mosec is not installed (pip install mosec)")
        return None
    return _answering(registry, url)


@contextmanager
def _answering(registry: Path, url: str) -> Iterator[Server]:
    with server("tests.benchmarks.mosec_server", str(registry), url) as peer:
        until = time.perf_counter() + START_S
        while not _answers(peer):
            if time.perf_counter() > until:
                raise RuntimeError("mosec did not start")
            time.sleep(0.1)
        yield peer


def _answers(peer: Server) -> bool:
    """Whether a call is answered."""
    try:
        return raw_http.run(peer.port, "/inference", in_flight=1, seconds=0.01).calls > 0
    except OSError:
        return False


def cost(peer: Server, *, in_flight: int, seconds: float) -> float:
    """CPU seconds of all of mosec's processes per call; RuntimeError where one failed."""
    before = peer.cpu_s()
    result = raw_http.run(peer.port, "/inference", in_flight=in_flight, seconds=seconds)
    if result.failed:
        raise RuntimeError(f"mosec failed {result.failed} of {result.calls + result.failed} calls")
    return (peer.cpu_s() - before) / result.calls
