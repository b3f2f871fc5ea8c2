"""Settings of the server: from the command line, else from the environment (``TIDEMARK_…``), else the default."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tidemark.loopback import is_loopback


class Settings(BaseSettings):
    """Each field's description is its documentation: ``tidemark serve --help`` and the README show it."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEMARK_",
        cli_prog_name="tidemark serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,  # --durable rather than --durable true
        extra="forbid",
    )

    registry: Annotated[Path, Field(description="Folder of model bundles; its current one is served.")]
    redis: Annotated[
        str,
        Field(
            min_length=1,
            description="Redis with the features: redis://host:port/db, unix:///path, redis+sentinel://… or "
            "redis+cluster://…",
        ),
    ]
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")] = (
        50051
    )
    front: Annotated[
        Literal["lean", "grpcio"],
        Field(description="What speaks gRPC: lean, our own over a native HTTP/2 parser, or grpcio's server."),
    ] = "lean"
    workers: Annotated[
        int, Field(ge=1, le=64, description="Processes that share the port; each is one core, more or less.")
    ] = 1
    tls_certificate: Annotated[
        Path | None, Field(description="PEM file with the server's certificate, and what stands above it; sets TLS on.")
    ] = None
    tls_key: Annotated[Path | None, Field(description="PEM file with its key, without a password.")] = None
    tls_client_ca: Annotated[
        Path | None, Field(description="PEM file of the authorities that clients must have a certificate of.")
    ] = None
    tokens: Annotated[
        Path | None, Field(description="TOML or JSON file of callers, by token or certificate; others are refused.")
    ] = None
    allow_anyone: Annotated[
        bool, Field(description="Listen beyond this machine with neither tokens nor tls_client_ca: anyone may call.")
    ] = False
    redis_timeout_ms: Annotated[
        int, Field(ge=1, le=60_000, description="Redis must connect and answer within this time.")
    ] = 250
    health_interval_ms: Annotated[
        int,
        Field(ge=10, le=60_000, description="How often Redis is asked whether it is there, for the health service."),
    ] = 500
    stale_cache_bytes: Annotated[
        int, Field(ge=0, description="Memory for states read lately, for callers with allow_stale; 0: none are kept.")
    ] = 0
    registry_interval_ms: Annotated[
        int,
        Field(ge=10, le=600_000, description="How often the registry is looked at for another model or rollout."),
    ] = 1000
    max_batch_rows: Annotated[int, Field(ge=1, le=10_000, description="Most customers in one graph run.")] = 256
    slice_rows: Annotated[
        int, Field(ge=1, le=10_000, description="Most customers of one call in one graph run; the rest takes turns.")
    ] = 128
    max_queue_ms: Annotated[
        float, Field(gt=0, description="Scores that would wait longer are shed; a fifth, once the queue is standing.")
    ] = 50.0
    max_events_queue_ms: Annotated[float, Field(gt=0, description="Events that would wait longer are shed.")] = 500.0
    max_message_bytes: Annotated[
        int, Field(ge=1024, le=2**30, description="Largest request or reply, after decompression.")
    ] = 2**20
    max_buffered_bytes: Annotated[
        int,
        Field(
            ge=1024, description="Most bytes of unfinished requests, and of unread replies, a connection. Lean only."
        ),
    ] = 16 * 2**20
    max_held_bytes: Annotated[
        int, Field(ge=1024, description="The same for all connections together; the greediest is closed. Lean only.")
    ] = 256 * 2**20
    stalled_s: Annotated[
        float, Field(gt=0, description="A client must have taken some of its replies within this time. Lean only.")
    ] = 30.0
    max_connections: Annotated[int, Field(ge=1, description="More are closed at once. Lean only.")] = 1000
    max_connection_age_s: Annotated[
        float, Field(gt=0, description="Then a client is asked to come on a new connection, give or take 10 %.")
    ] = 1800.0
    keepalive_s: Annotated[
        float, Field(gt=0, description="A client that was silent for so long is asked for a sign of life.")
    ] = 60.0
    keepalive_timeout_s: Annotated[float, Field(gt=0, description="It has so long to give one.")] = 20.0
    max_lateness_hours: Annotated[
        float, Field(gt=0, le=1e6, description="Older events are refused; so long an event is known again by its id.")
    ] = 72.0
    max_future_s: Annotated[float, Field(ge=0, description="Events further ahead of the clock are refused.")] = 300.0
    cap_type_hour: Annotated[
        int, Field(ge=1, description="Most events of one type that are folded for a customer and an hour.")
    ] = 300
    cap_hour: Annotated[int, Field(ge=1, description="Most events that are folded for a customer and an hour.")] = 1000
    cap_total: Annotated[
        int, Field(ge=1, description="Most events that are folded for a customer within the lateness.")
    ] = 5000
    keep_text: Annotated[bool, Field(description="Keep feedback texts in the archive.")] = False
    durable: Annotated[
        bool, Field(description="Acknowledge events only when they are on disk (needs Redis with appendonly).")
    ] = False
    max_unarchived: Annotated[
        int, Field(ge=0, description="Commits that may wait for the archive; then events are refused. 0: any number.")
    ] = 1_000_000
    spike_z: Annotated[
        float,
        Field(gt=0, description="How far beyond the usual a share of alerts marks answers as given in a spike."),
    ] = 6.0
    spike_window_s: Annotated[
        float, Field(gt=0, description="Length of the windows in which alerts are counted for that; 60 are remembered.")
    ] = 60.0
    grace_s: Annotated[
        float, Field(ge=0, le=600, description="At a stop, running calls may take this long to finish.")
    ] = 5.0
    drain_s: Annotated[
        float,
        Field(ge=0, le=600, description="At a stop, calls are still taken for so long after health says NOT_SERVING."),
    ] = 0.0
    supervised: Annotated[
        bool, Field(description="Let a process watch over a single worker too, for restarts by SIGHUP.")
    ] = False
    log_key: Annotated[
        SecretStr | None,
        Field(description="Key under which the log has hashes of customer ids; without one another at each start."),
    ] = None
    metrics_port: Annotated[
        int, Field(ge=0, le=65535, description="Port for metrics over HTTP, of all workers together; 0: none.")
    ] = 0
    metrics_host: Annotated[str, Field(description="Address to listen on for metrics.")] = "127.0.0.1"
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]+/?$",
            description="Collector that traces go to: http(s)://host:port of OTLP over gRPC. Needs the extra otel.",
        ),
    ] = None
    trace_share: Annotated[
        float, Field(ge=0, le=1, description="Share of calls to trace, of those that come without a caller's trace.")
    ] = 0.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Least severity that is logged.")
    ] = "INFO"
    log_format: Annotated[
        Literal["text", "json"], Field(description="How lines of the log look: for people, or one JSON object each.")
    ] = "text"

    @property
    def host_of_address(self) -> str:
        """The host as it stands before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @model_validator(mode="after")
    def _tls_goes_together(self) -> Self:
        # A setting, a colon and the mend, as all other problems of settings are told.
        if (self.tls_certificate is None) is not (self.tls_key is None):
            missing = "tls_certificate" if self.tls_certificate is None else "tls_key"
            raise ValueError(f"{missing}: missing, certificate and key go together: give both, or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_certificate: missing, and tls_client_ca needs it with its key")
        return self

    @model_validator(mode="after")
    def _callers_are_known(self) -> Self:
        anyone = self.tokens is None and self.tls_client_ca is None
        if anyone and not self.allow_anyone and not is_loopback(self.host):
            others = f"others can reach {self.host_of_address or 'every address'}, and anyone may call"
            raise ValueError(f"tokens: missing, {others}: name callers, set tls_client_ca, or say --allow-anyone")
        return self

    @model_validator(mode="after")
    def _log_has_a_key(self) -> Self:
        if self.log_key is None:  # here, so that all workers have the same
            self.log_key = SecretStr(secrets.token_hex(16))
        return self
