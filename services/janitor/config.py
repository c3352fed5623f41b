"""Settings of the janitor, all from environment variables that begin with MAYFLY_."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.settings.addresses import DatabaseUrl, OptionalHostAndPort, ServiceAddress
from libs.settings.durations import Duration
from libs.settings.logging import LogLevel


class Settings(BaseSettings):
    """What one janitor replica needs to know."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_", extra="ignore")

    database_url: DatabaseUrl = Field(
        description="PostgreSQL, as postgresql://user@host/database. The janitor uses the schema "
        "`janitor` in it, for receipts and sweeps."
    )
    janitor_listen: ServiceAddress = Field(
        default="127.0.0.1:7003",
        description="Where JanitorService listens: unix:/path or host:port.",
    )
    database_wait: Duration = Field(
        default=timedelta(seconds=10),
        ge=timedelta(0),
        description="Seconds that a PostgreSQL that does not answer is awaited at the start.",
    )
    deployer_address: ServiceAddress = Field(
        default="127.0.0.1:7002",
        description="Where the deployer, owner of functions, is reached. Spans go there as well.",
    )
    builder_address: ServiceAddress = Field(
        default="127.0.0.1:7001",
        description="Where the builder, owner of builds, is reached.",
    )
    owners: dict[str, ServiceAddress] = Field(
        default={},
        description="Further owners of things that end, as a JSON object of name to address. A new "
        "kind of thing that expires is a new ReclaimerService named here.",
    )
    otlp_endpoint: OptionalHostAndPort = Field(
        default="", description="An OTLP/gRPC collector of one's own, host:port. Empty: none."
    )
    janitor_metrics_listen: OptionalHostAndPort = Field(
        default="",
        description="Where Prometheus metrics are served, host:port. Empty: nowhere.",
    )
    log_level: LogLevel = Field(default="INFO", description="The lowest level that is logged.")

    reclaim_batch: int = Field(
        default=500,
        ge=1,
        le=5000,
        description="Things a Reclaim call, at most. 500 keeps one statement of the owner below "
        "10 ms and is where the gain of batching levels off.",
    )
    reclaim_calls: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Reclaim calls at the same time that keep one owner busy. Two do, while the "
        "janitor writes its own rows.",
    )
    reclaim_busy: Duration = Field(
        default=timedelta(milliseconds=250),
        gt=timedelta(0),
        description="Seconds that a Reclaim call counts as one of those. What takes longer waits "
        "for something (the end of a pod), and must not hold up what is due meanwhile.",
    )
    reclaim_timeout: Duration = Field(
        default=timedelta(seconds=60),
        gt=timedelta(0),
        description="Seconds after which a Reclaim call is given up and tried again. Removing is "
        "idempotent, so trying again is safe.",
    )
    verify_timeout: Duration = Field(
        default=timedelta(seconds=30),
        gt=timedelta(0),
        description="Seconds that an owner may take to look at its part of the world.",
    )
    coalesce: Duration = Field(
        default=timedelta(milliseconds=5),
        ge=timedelta(0),
        description="Seconds within which deadlines share one wake-up. Envoy refuses at the "
        "deadline itself, so this delays only the removal.",
    )
    retry_first: Duration = Field(
        default=timedelta(milliseconds=50),
        gt=timedelta(0),
        description="Seconds until the first retry of what could not be removed; doubles.",
    )
    retry_most: Duration = Field(
        default=timedelta(seconds=30),
        gt=timedelta(0),
        description="Seconds between retries, at most. There is no last retry.",
    )
    sweep_interval: Duration = Field(
        default=timedelta(minutes=10),
        ge=timedelta(0),
        description="Seconds between sweeps for orphans; the first one comes when the owners are "
        "connected. 0: never, only by JanitorService.Sweep.",
    )
    receipt_retention: Duration = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        description="Seconds that a receipt is kept after everything was removed.",
    )

    def all_owners(self) -> dict[str, str]:
        """Every owner's name and address."""
        return {
            "deployer": self.deployer_address,
            "builder": self.builder_address,
            **self.owners,
        }
