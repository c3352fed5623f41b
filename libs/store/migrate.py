"""Alembic migrations, one tree a service, in that service's schema."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

# Alembic's `op` is a process-wide proxy: services of one process migrate one after the other.
_ONE_AT_A_TIME = threading.Lock()


def upgrade(dsn: str, schema: str, migrations: Path) -> None:
    """Bring `schema` to the newest revision under `migrations`; safe from many replicas at once.

    Blocks: call it in a thread from an event loop.
    """
    with _ONE_AT_A_TIME:
        asyncio.run(_upgrade(dsn, schema, migrations))


async def _upgrade(dsn: str, schema: str, migrations: Path) -> None:
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, connect_args={"server_settings": {"search_path": schema}})
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run, schema, migrations)
    finally:
        await engine.dispose()


def _run(connection: Connection, schema: str, migrations: Path) -> None:
    # The lock ends with the transaction, so a replica that dies here frees the others.
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"mayfly-migrate-{schema}"}
    )
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)

    def to_head(revision: object, _: object) -> object:
        return script._upgrade_revs("head", revision)  # pyright: ignore

    with EnvironmentContext(config, script, fn=to_head) as environment:  # pyright: ignore
        environment.configure(connection=connection, version_table_schema=schema)
        environment.run_migrations()
