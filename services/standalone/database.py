"""`python -m services.standalone.database`: a throw-away PostgreSQL that others reach by TCP.

For trying a release out (`--set demo=true`) and for tests; what it holds goes with its directory.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.rpc.addresses import host_and_port
from libs.rpc.process import load, run
from libs.settings.addresses import HostAndPort
from services.standalone.postgres import EmbeddedPostgres, Listen


class Settings(BaseSettings):
    """Where it listens and keeps its files."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_")

    database_dir: Path = Field(description="Directory of its files, its own.")
    database_listen: HostAndPort = Field(description="host:port; 0.0.0.0 is every interface.")
    database_user: str = Field(default="mayfly", description="Its one account.")
    database_password: str = Field(min_length=1, description="What the account is asked for.")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop` is set. Raises `StartError`."""
    host, port = host_and_port(settings.database_listen)
    listen = Listen(host, port, settings.database_user, settings.database_password)
    postgres = EmbeddedPostgres(settings.database_dir, listen)
    try:
        await postgres.start()
        await stop.wait()
    finally:
        await postgres.stop()


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = load(Settings)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
