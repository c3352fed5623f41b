"""Settings of the platform on one machine."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.settings.addresses import HostAndPort, OptionalDatabaseUrl, OptionalUrl
from libs.settings.logging import LogLevel


def default_data_dir() -> Path:
    """Return /var/lib/mayfly for root, the XDG state directory for others.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if os.geteuid() == 0:
        return Path("/var/lib/mayfly")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "mayfly"


class StandaloneSettings(BaseSettings):
    """What `services.standalone` decides itself; each service reads its own settings besides."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_")

    listen: HostAndPort = Field(
        default="127.0.0.1:8080",
        description="host:port of the one public port; loopback, because whoever reaches it "
        "may run code here",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="directory of everything that outlives a restart; one instance at a time",
    )
    public_url: OptionalUrl = Field(
        default="",
        description="what functions' URLs begin with; empty: http://localhost and the port of "
        "`listen`",
    )
    database_url: OptionalDatabaseUrl = Field(
        default="",
        description="postgresql:// of a database that runs; empty starts an embedded one",
    )
    log_level: LogLevel = Field(
        default="WARNING",
        description="DEBUG, INFO, WARNING or ERROR; higher than a service's own default, because "
        "four of them share one terminal",
    )

    @field_validator("data_dir")
    @classmethod
    def _data_dir_is_absolute(cls, value: Path) -> Path:
        absolute = value.expanduser().absolute()
        # A unix socket's path has at most 107 bytes (unix(7)); the longest below it takes 60.
        if len(os.fsencode(absolute)) > 47:
            raise ValueError("the path is too long for unix sockets below it: at most 47 bytes")
        return absolute
