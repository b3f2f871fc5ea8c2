"""Settings of the server: from the command line, else from the environment (``TIDEMARK_…``), else the default.

Durations are in seconds, as all times in the metrics, the log and the code are. The one exception is the lateness of
events: it is a matter of days, and the same setting in hours belongs to ``tidemark load``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, CliSuppress, SettingsConfigDict

from tidemark.loopback import is_loopback

PREFIX: Final = "TIDEMARK_"

RENAMED: Final[Mapping[str, str]] = {
    "cap_hour": "max_events_per_hour",
    "cap_total": "max_events_per_customer",
    "cap_type_hour": "max_events_per_type_hour",
    "durable": "durable_events",
    "front": "transport",
    "health_interval_ms": "health_interval_s",
    "keepalive_s": "keepalive_interval_s",
    "max_events_queue_ms": "max_event_queue_s",
    "max_held_bytes": "max_total_buffered_bytes",
    "max_queue_ms": "max_queue_s",
    "max_unarchived": "max_unarchived_commits",
    "redis_timeout_ms": "redis_timeout_s",
    "registry_interval_ms": "registry_interval_s",
    "spike_z": "spike_threshold",
    "stalled_s": "write_stall_timeout_s",
    "tokens": "callers",
}
"""Settings of earlier releases and their names today."""
REMOVED: Final = frozenset({"max_batch_rows", "slice_rows", "spike_window_s"})
"""Settings of earlier releases that have a fixed value today."""


class Settings(BaseSettings):
    """Each setting is an option, or an environment variable: TIDEMARK_ and the option in capitals, with underscores."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        cli_prog_name="tidemark serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,  # --durable-events rather than --durable-events true
        extra="forbid",
    )

    registry: Annotated[Path, Field(description="Folder of model bundles; its current bundle is served.")]
    redis: Annotated[
        str,
        Field(
            min_length=1,
            description="Redis with the features: redis://host:port/db, unix:///path, redis+sentinel://… or "
            "redis+cluster://…",
        ),
    ]
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free port and logs its number.")
    ] = 50051
    transport: Annotated[
        Literal["lean", "grpcio"],
        Field(
            description="gRPC implementation: lean, our own on a native HTTP/2 parser, or grpcio, grpc.aio's server."
        ),
    ] = "lean"
    workers: Annotated[
        int, Field(ge=1, le=64, description="Processes that share the port; each uses about one core.")
    ] = 1
    tls_certificate: Annotated[
        Path | None, Field(description="PEM file with the server certificate and its chain. Enables TLS.")
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="PEM file with the private key of the certificate, without a password.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(description="PEM file of CAs; clients must present a certificate issued by one of them (mTLS)."),
    ] = None
    callers: Annotated[
        Path | None,
        Field(description="TOML or JSON file of the callers and their tokens or certificates; all others are refused."),
    ] = None
    allow_anyone: Annotated[
        bool,
        Field(description="Listen beyond this machine without callers or tls_client_ca: anyone may call."),
    ] = False
    redis_timeout_s: Annotated[
        float,
        Field(
            ge=0.001, le=60, description="Seconds for Redis to answer. Setting up a connection may take 1 s or more."
        ),
    ] = 0.25
    health_interval_s: Annotated[
        float, Field(ge=0.01, le=60, description="Seconds between probes of Redis for the health service.")
    ] = 0.5
    stale_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for recently read states, used for callers with allow_stale while Redis is "
            "unavailable; 0 disables it.",
        ),
    ] = 0
    registry_interval_s: Annotated[
        float,
        Field(ge=0.01, le=600, description="Seconds between checks of the registry for another model or rollout."),
    ] = 1.0
    max_queue_s: Annotated[
        float,
        Field(
            gt=0,
            description="Scores that would wait longer than these seconds are shed; a fifth of it applies to a queue "
            "that does not empty.",
        ),
    ] = 0.05
    max_event_queue_s: Annotated[
        float, Field(gt=0, description="Events that would wait longer than these seconds are shed.")
    ] = 0.5
    max_message_bytes: Annotated[
        int, Field(ge=1024, le=2**30, description="Maximum size of a request or reply, after decompression.")
    ] = 2**20
    max_buffered_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Maximum bytes of incomplete requests, and of unread replies, per connection. Lean only.",
        ),
    ] = 16 * 2**20
    max_total_buffered_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Maximum bytes buffered over all connections; beyond it the connection that holds most is "
            "closed. Lean only.",
        ),
    ] = 256 * 2**20
    write_stall_timeout_s: Annotated[
        float,
        Field(gt=0, description="Seconds after which a client that takes none of its replies is closed. Lean only."),
    ] = 30.0
    max_connections: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum open connections, of which one address may have four fifths. At a limit, connections "
            "without a call are closed first. Lean only.",
        ),
    ] = 1000
    max_connection_age_s: Annotated[
        float,
        Field(gt=0, description="Seconds after which a connection is closed gracefully with GOAWAY (±10 % jitter)."),
    ] = 1800.0
    keepalive_interval_s: Annotated[
        float, Field(gt=0, description="Idle seconds before the server pings a client.")
    ] = 60.0
    keepalive_timeout_s: CliSuppress[
        Annotated[float, Field(gt=0, description="Seconds for the answer to a ping before the connection is closed.")]
    ] = 20.0
    max_lateness_hours: Annotated[
        float,
        Field(
            gt=0,
            le=1e6,
            description="Older events are rejected; an event sent again within this time is recognised by its id.",
        ),
    ] = 72.0
    max_future_s: Annotated[
        float, Field(ge=0, description="Events dated further ahead of the server's clock are rejected.")
    ] = 300.0
    max_events_per_type_hour: Annotated[
        int, Field(ge=1, description="Maximum events of one type that count per customer and hour.")
    ] = 300
    max_events_per_hour: Annotated[int, Field(ge=1, description="Maximum events that count per customer and hour.")] = (
        1000
    )
    max_events_per_customer: Annotated[
        int, Field(ge=1, description="Maximum events that count per customer within max_lateness_hours.")
    ] = 5000
    keep_text: Annotated[bool, Field(description="Keep feedback texts in the archive.")] = False
    durable_events: Annotated[
        bool, Field(description="Acknowledge events only when they are on disk; needs Redis with appendonly.")
    ] = False
    max_unarchived_commits: Annotated[
        int,
        Field(ge=0, description="Commits that may wait for the archiver before events are refused; 0 is no limit."),
    ] = 1_000_000
    spike_threshold: Annotated[
        float,
        Field(
            gt=0,
            description="Robust standard deviations above the usual at which a share of alerts is marked as a spike.",
        ),
    ] = 6.0
    grace_s: Annotated[
        float, Field(ge=0, le=600, description="Seconds for running calls to finish when the server stops.")
    ] = 5.0
    drain_s: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            description="Seconds for which calls are still accepted after health turns NOT_SERVING, when the server "
            "stops.",
        ),
    ] = 0.0
    supervised: Annotated[
        bool, Field(description="Run a supervisor even for a single worker, for rolling restarts by SIGHUP.")
    ] = False
    log_key: CliSuppress[
        Annotated[
            SecretStr | None,
            Field(
                description="Key of the hashes of customer ids in the log, from the environment only; a random key at "
                "each start without it."
            ),
        ]
    ] = None
    log_key_file: Annotated[
        Path | None, Field(description="File with the same key, whose surrounding white space is ignored.")
    ] = None
    metrics_port: Annotated[
        int,
        Field(ge=0, le=65535, description="HTTP port for the Prometheus metrics of all workers; 0 disables it."),
    ] = 0
    metrics_host: Annotated[str, Field(description="Address to listen on for metrics.")] = "127.0.0.1"
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]+/?$",
            description="Collector for traces: http(s)://host:port of OTLP over gRPC. Needs the extra otel.",
        ),
    ] = None
    trace_share: Annotated[
        float, Field(ge=0, le=1, description="Share of calls to trace among those that arrive without a trace.")
    ] = 0.0
    docs_url: Annotated[
        str,
        Field(
            pattern=r"^(https?://\S+)?$",
            description="Address of this documentation on a web server, to which errors link; without it, errors name "
            "the path of their page.",
        ),
    ] = ""
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Minimum severity of log lines.")
    ] = "INFO"
    log_format: Annotated[
        Literal["text", "json"], Field(description="Format of log lines: text for people, or one JSON object per line.")
    ] = "text"

    @property
    def host_of_address(self) -> str:
        """The host as it is written before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    # Messages are a setting, a colon, and what to do: the command shows the setting as its option.

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_certificate is None) is not (self.tls_key is None):
            missing = "tls_certificate" if self.tls_certificate is None else "tls_key"
            raise ValueError(f"{missing}: missing, certificate and key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_certificate: missing, tls_client_ca needs a certificate and its key")
        return self

    @model_validator(mode="after")
    def _callers_are_known(self) -> Self:
        anyone = self.callers is None and self.tls_client_ca is None
        if anyone and not self.allow_anyone and not is_loopback(self.host):
            others = f"others can reach {self.host_of_address or 'every address'}, and anyone may call"
            raise ValueError(f"callers: missing, {others}: name callers, set tls_client_ca, or say --allow-anyone")
        return self

    @model_validator(mode="after")
    def _log_has_a_key(self) -> Self:
        if self.log_key is not None and self.log_key_file is not None:
            raise ValueError("log_key_file: given together with TIDEMARK_LOG_KEY: give one of them")
        if self.log_key_file is not None:
            try:
                key = self.log_key_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"log_key_file: cannot be read ({type(error).__name__}): name a text file") from error
            if not key:
                raise ValueError("log_key_file: the file is empty: put a key into it")
            self.log_key = SecretStr(key)
        elif self.log_key is None:
            self.log_key = SecretStr(secrets.token_hex(16))  # here, so that all workers have the same key
        return self


def outdated_setting(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Find a setting of an earlier release.

    Args:
        arguments: The options of the command.
        environment: The environment variables.

    Returns:
        What to use instead, as a line for the user; None if all settings are known today.
    """
    for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
        if name == "log_key":
            return "--log-key: a secret on the command line is visible to all users: set TIDEMARK_LOG_KEY"
        if name in RENAMED:
            return f"{option} is called --{RENAMED[name].replace('_', '-')} now{_unit(name)}"
        if name in REMOVED:
            return f"{option} is no longer a setting: leave it out"
    for name, current in RENAMED.items():
        if PREFIX + name.upper() in environment:
            return f"{PREFIX}{name.upper()} is called {PREFIX}{current.upper()} now{_unit(name)}"
    return None


def _unit(name: str) -> str:
    return ", in seconds" if name.endswith("_ms") else ""
