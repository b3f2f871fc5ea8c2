"""Settings of the server: from the command line, else from the environment (``TIDEMARK_…``), else the default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field's description is its documentation: ``python -m service --help`` and the README show it."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEMARK_", cli_prog_name="python -m service", cli_kebab_case=True, extra="forbid"
    )

    registry: Annotated[Path, Field(description="Folder of model bundles; its current one is served.")]
    redis: Annotated[
        str, Field(min_length=1, description="Redis with the features: redis://host:port/db or unix:///path.")
    ]
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")] = (
        50051
    )
    redis_timeout_ms: Annotated[
        int, Field(ge=1, le=60_000, description="Redis must connect and answer within this time.")
    ] = 250
    health_interval_ms: Annotated[
        int,
        Field(ge=10, le=60_000, description="How often Redis is asked whether it is there, for the health service."),
    ] = 500
    max_batch_rows: Annotated[int, Field(ge=1, le=10_000, description="Most customers in one graph run.")] = 512
    slice_rows: Annotated[
        int, Field(ge=1, le=10_000, description="Most customers of one call in one graph run; the rest takes turns.")
    ] = 256
    grace_s: Annotated[
        float, Field(ge=0, le=600, description="At a stop, running calls may take this long to finish.")
    ] = 5.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="Least severity that is logged.")
    ] = "INFO"
