"""What a load test is to do, within bounds, and whom it may do it to."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from feature_store.errors import InputError

MAX_RATE: Final = 100_000.0
MAX_DURATION_S: Final = 3600.0
MAX_WARM_UP_S: Final = 60.0
MAX_DEADLINE_MS: Final = 60_000.0
MAX_CALLS: Final = 20_000_000
"""In all steps together, with their warm-ups."""
MAX_WAITING_IDS: Final = 2_000_000
"""Ids in calls that may wait for an answer at a time: rate * deadline * batch."""
MAX_CONNECTIONS: Final = 256
MAX_PROCESSES: Final = 64
MAX_BATCH: Final = 1000
MAX_STEPS: Final = 40

Arrivals = Literal["poisson", "constant"]
Draw = Literal["zipf", "uniform"]


@dataclass(frozen=True)
class Target:
    """A server: as it was named, and the address that this name stands for."""

    host: str
    port: int
    address: str
    remote: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Access:
    """What a server may want to see: a bearer token, and files for TLS (``tls`` without an authority: the system's)."""

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """For connections; None without TLS. InputError where the files cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InputError(f"TLS: authority, certificate and key do not open or do not fit ({error})") from error
        context.set_alpn_protocols(["h2"])
        return context


@dataclass(frozen=True)
class Plan:
    """A load test. ``rate`` is in calls a second, ``batch`` in ids a call (None: unary); ``p99_ms`` is the aim, if any.

    ``find``: search the highest rate that holds it, in up to ``steps`` steps of ``duration_s``. A call that begins more
    than ``max_lag_ms`` after its time is late by the generator's fault.
    """

    target: Target
    access: Access = Access()
    rate: float = 100.0
    duration_s: float = 10.0
    warm_up_s: float = 1.0
    arrivals: Arrivals = "poisson"
    draw: Draw = "zipf"
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
        """Seconds from the time a call should begin."""
        return self.deadline_ms / 1e3

    def check(self) -> None:
        """InputError where the parts do not go together, or would be more load than this is made for."""
        if self.find and self.p99_ms is None:
            raise InputError("--find needs the p99 that the rate is to hold: give --p99-ms")
        if self.p99_ms is not None and self.p99_ms >= self.deadline_ms:
            raise InputError("--p99-ms must be below --deadline-ms: what is not answered by then is given up")
        if self.connections < self.processes:
            raise InputError("each process needs a connection: give more --connections, or fewer --processes")
        if not self.find and self.calls(self.rate) > MAX_CALLS:
            raise InputError(f"{self.calls(self.rate):,.0f} calls: at most {MAX_CALLS:,} are made in one test")
        if self.rate > self._most_waiting:
            raise InputError(
                f"more than {MAX_WAITING_IDS:,} customers could wait for an answer at a time: lower --rate, "
                "--deadline-ms or --batch"
            )

    def calls(self, rate: float) -> float:
        """About so many calls make a step at a rate."""
        return rate * (self.duration_s + self.warm_up_s)

    @property
    def most_rate(self) -> float:
        """The highest rate of a step that stays within all bounds, whatever the other steps are."""
        return min(MAX_RATE, self._most_waiting, MAX_CALLS / (self.steps * (self.duration_s + self.warm_up_s)))

    @property
    def _most_waiting(self) -> float:
        """The highest rate at which calls cannot pile up beyond bounds while the server says nothing."""
        return MAX_WAITING_IDS / (self.deadline_s * (self.batch or 1))


def find_target(text: str, *, allow_remote: bool) -> Target:
    """HOST:PORT, looked up; InputError where it is not found, or not on this machine and that was not allowed."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"{text!r} is no target: write HOST:PORT")
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)]
    except OSError as error:
        raise InputError(f"the host of {text} is not known ({error.strerror})") from error
    remote = not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
    if remote and not allow_remote:
        raise InputError(
            f"{text} is not on this machine: a load test may bring a server down, so --allow-remote has to say that "
            "you may load this one"
        )
    return Target(host, int(port), found[0], remote)
