"""What a load test does, within limits, and which server it may load."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tidemark.load.errors import InputError

MAX_RATE: Final = 100_000.0
MAX_DURATION_S: Final = 3600.0
MAX_WARM_UP_S: Final = 60.0
MAX_DEADLINE_MS: Final = 60_000.0
MAX_CALLS: Final = 20_000_000
"""Limit for all steps together, including their warm-ups."""
MAX_WAITING_IDS: Final = 2_000_000
"""Limit for the ids in calls that may be waiting for replies: rate * deadline * batch."""
MAX_CONNECTIONS: Final = 256
MAX_PROCESSES: Final = 64
MAX_BATCH: Final = 1000
MAX_STEPS: Final = 40

Arrivals = Literal["poisson", "constant"]
IdDistribution = Literal["zipf", "uniform"]


@dataclass(frozen=True)
class Target:
    """A server: host and port as they were given, and the address that the host resolves to."""

    host: str
    port: int
    address: str
    remote: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Access:
    """What a server may require: a token, and PEM files for TLS. Without ``ca`` the CAs of the system are trusted."""

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """The TLS settings of connections; None without TLS.

        Raises:
            InputError: the files cannot be read or do not fit together.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InputError(f"TLS: CA, certificate and key cannot be read or do not fit together ({error})") from error
        context.set_alpn_protocols(["h2"])
        return context


@dataclass(frozen=True)
class Plan:
    """A load test.

    Attributes:
        target: the server.
        access: token and TLS files.
        rate: calls a second; the first rate of a search.
        duration_s: length of each step.
        warm_up_s: time before each step that is not counted.
        arrivals: how calls are distributed over time.
        draw: how ids are distributed over calls.
        zipf_exponent: exponent of Zipf's law, for ``draw="zipf"``.
        batch: ids in each call; None for unary calls.
        deadline_ms: deadline of each call, from the time at which it is due.
        connections: number of connections, in all processes together.
        processes: number of sending processes.
        max_lag_ms: a call that starts later than this after it was due counts against the load generator.
        p99_ms: the goal: 99 % of all calls are answered within this time; None for no goal.
        find: search for the highest rate that meets the goal.
        steps: maximum number of steps of a search.
        seed: seed of arrival times and ids.
    """

    target: Target
    access: Access = Access()
    rate: float = 100.0
    duration_s: float = 10.0
    warm_up_s: float = 1.0
    arrivals: Arrivals = "poisson"
    draw: IdDistribution = "zipf"
    zipf_exponent: float = 1.0
    batch: int | None = None
    deadline_ms: float = 1000.0
    connections: int = 4
    processes: int = 1
    max_lag_ms: float = 2.0
    p99_ms: float | None = None
    find: bool = False
    steps: int = 16
    seed: int = 1

    @property
    def deadline_s(self) -> float:
        """Deadline of each call in seconds, from the time at which it is due."""
        return self.deadline_ms / 1e3

    def check(self) -> None:
        """Check that the options fit together and stay within the limits.

        Raises:
            InputError: they do not; the message names the options to change.
        """
        if self.find and self.p99_ms is None:
            raise InputError("--find needs a goal for the p99: add --p99-ms")
        if self.p99_ms is not None and self.p99_ms >= self.deadline_ms:
            raise InputError("--p99-ms must be below --deadline-ms: calls are given up at their deadline")
        if self.connections < self.processes:
            raise InputError("each process needs a connection: use more --connections or fewer --processes")
        if not self.find and self.calls(self.rate) > MAX_CALLS:
            raise InputError(f"{self.calls(self.rate):,.0f} calls are too many: a test makes at most {MAX_CALLS:,}")
        if self.rate > self._max_unanswered_rate:
            raise InputError(
                f"calls for more than {MAX_WAITING_IDS:,} customers could be waiting at a time: lower --rate, "
                "--deadline-ms or --batch"
            )

    def calls(self, rate: float) -> float:
        """The expected number of calls of a step at a rate, including its warm-up."""
        return rate * (self.duration_s + self.warm_up_s)

    @property
    def max_rate(self) -> float:
        """The highest rate of a step that keeps within all limits, whatever the other steps are."""
        return min(MAX_RATE, self._max_unanswered_rate, MAX_CALLS / (self.steps * (self.duration_s + self.warm_up_s)))

    @property
    def _max_unanswered_rate(self) -> float:
        """The highest rate at which unanswered calls stay within their limit while the server sends no replies."""
        return MAX_WAITING_IDS / (self.deadline_s * (self.batch or 1))


def find_target(text: str, *, allow_remote: bool) -> Target:
    """Resolve a target.

    Args:
        text: ``HOST:PORT``.
        allow_remote: whether the server may be on another machine.

    Raises:
        InputError: the target cannot be resolved, or is on another machine without permission.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"{text!r} is not a target: write HOST:PORT")
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)]
    except OSError as error:
        raise InputError(f"the host of {text} cannot be resolved ({error.strerror})") from error
    remote = not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
    if remote and not allow_remote:
        raise InputError(
            f"{text} is not on this machine. A load test can bring a server down: if you may load this one, add "
            "--allow-remote"
        )
    return Target(host, int(port), addresses[0], remote)
