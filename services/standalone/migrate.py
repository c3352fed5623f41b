"""`python -m services.standalone.migrate`: brings the schemas of all services up to date.

What a release runs before its new services start. They would do it themselves, one at a time by an
advisory lock; here a migration that fails ends the upgrade before any running replica is replaced.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib import resources
from pathlib import Path

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.rpc.process import StartError, load, run
from libs.settings.durations import Duration
from libs.store import StoreUnavailable
from libs.store.database import until_answers
from libs.store.migrate import upgrade

log = structlog.get_logger()

SERVICES = ("builder", "deployer", "janitor")
"""Each has a schema of its name and its migrations in services/NAME/migrations."""


class Settings(BaseSettings):
    """Which database, and how long to wait for it."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_")

    database_url: str = Field(description="PostgreSQL, as postgresql://user@host/database.")
    migrate_wait: Duration = Field(
        default=timedelta(minutes=2),
        description="Seconds that the database may take to answer: one that is installed at the "
        "same moment needs some.",
    )


async def migrate(settings: Settings) -> None:
    """Upgrade every schema. Raises `StartError` when the database does not answer in time."""
    try:
        await until_answers(settings.database_url, settings.migrate_wait.total_seconds())
    except StoreUnavailable as error:
        raise StartError(f"MAYFLY_DATABASE_URL: PostgreSQL does not answer: {error}") from error
    for service in SERVICES:
        with resources.as_file(resources.files(f"services.{service}") / "migrations") as tree:
            await asyncio.to_thread(upgrade, settings.database_url, service, Path(tree))
        log.info("migrated", service=service)


def main() -> None:
    """Upgrade and end."""
    settings = load(Settings)
    run(lambda _: migrate(settings))


if __name__ == "__main__":
    main()
