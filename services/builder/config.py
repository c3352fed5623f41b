"""Settings of the builder, all from environment variables that begin with MAYFLY_.

uv reads the operator's own UV_* variables besides (UV_DEFAULT_INDEX, UV_INDEX, UV_HTTP_TIMEOUT),
those of proxies (HTTPS_PROXY, NO_PROXY) and of certificates (SSL_CERT_FILE).
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.rpc.addresses import host_and_port
from libs.rpc.durations import Duration

MIB = 1024 * 1024


class Settings(BaseSettings):
    """What one builder replica needs to know."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_", extra="ignore")

    database_url: str = Field(
        description="PostgreSQL, as postgresql://user@host/database. The builder uses the schema "
        "`builder` in it."
    )
    data_dir: Path = Field(
        default=Path("/var/lib/mayfly"),
        description="Directory below which `builds/` is made, on a file system that the functions' "
        "driver sees. Replicas of one machine share it.",
    )
    builder_listen: str = Field(
        default="127.0.0.1:7001",
        description="Where BuildService and ReclaimerService listen: unix:/path or host:port.",
    )
    deployer_address: str = Field(
        default="127.0.0.1:7002",
        description="Where spans go: the deployer keeps those of functions. Empty: nowhere.",
    )
    otlp_endpoint: str = Field(
        default="", description="An OTLP/gRPC collector of one's own, host:port. Empty: none."
    )
    builder_metrics_listen: str = Field(
        default="", description="Where Prometheus metrics are served, host:port. Empty: nowhere."
    )
    log_level: str = Field(default="INFO", description="The lowest level that is logged.")
    replica: str = Field(
        default="",
        description="This replica's name, the same after a restart: it takes its own builds up "
        "again at once. Empty: the host's name and the address it listens on.",
    )

    build_retention: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="Seconds that an environment stays after its last function has ended, and a "
        "build that nobody holds after its end. Long enough to try a change, short enough for "
        "disks.",
    )
    build_timeout: Duration = Field(
        default=timedelta(minutes=10),
        gt=timedelta(0),
        description="Seconds that a build may take from its start, waiting for its turn included.",
    )
    build_claim: Duration = Field(
        default=timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="Seconds that a replica may be silent before others take over its builds; it "
        "says so three times in this time.",
    )
    concurrent_builds: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Builds under way in this replica; more are queued for whoever has room.",
    )
    concurrent_installs: int = Field(
        default_factory=lambda: max(2, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="uv and Go processes that run at the same time in this replica, of each. They "
        "keep a core busy each; the default is one a core.",
    )
    max_source_bytes: int = Field(
        default=10 * MIB,
        ge=1,
        le=48 * MIB,
        description="Bytes of a source, an archive as it is sent.",
    )
    max_archive_bytes: int = Field(
        default=256 * MIB, ge=1, description="Bytes that an archive may unpack to."
    )
    max_archive_files: int = Field(
        default=10_000, ge=1, description="Files and directories that an archive may hold."
    )
    max_log_lines: int = Field(
        default=2000,
        ge=10,
        description="Lines of a build's log that are kept; later ones are counted.",
    )
    resolution_age: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="Seconds that the versions chosen for a set of requirements are used again "
        "before the index is asked anew.",
    )
    python_downloads: bool = Field(
        default=True,
        description="Whether uv may download a Python that a source requires and that is not here.",
    )
    build_sdists: bool = Field(
        default=False,
        description="Whether source distributions may be built. Their setup code then runs as the "
        "builder's user, outside any sandbox: only where sources are trusted.",
    )
    uv: str = Field(
        default="", description="Path of uv. Empty: the one installed with the platform."
    )
    go: str = Field(default="", description="Path of go. Empty: the one on PATH, if any.")

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: str) -> str:
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        return value

    @field_validator("builder_listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value.startswith("unix:"):
            host_and_port(value)
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("uv", "go")
    @classmethod
    def _is_a_program(cls, value: str) -> str:
        if value and not (os.path.isabs(value) and os.access(value, os.X_OK)):
            raise ValueError("must be the absolute path of a program")
        return value

    @property
    def replica_name(self) -> str:
        """The name under which this replica claims builds."""
        return self.replica or f"{socket.gethostname()}:{self.builder_listen}"
