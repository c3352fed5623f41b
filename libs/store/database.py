"""Databases of a server: waited for, and made where they are missing."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import structlog

from libs.store.errors import StoreUnavailable

log = structlog.get_logger()

_LOOK_SECONDS = 0.5


async def until_answers(dsn: str, seconds: float) -> None:
    """Wait until the database takes connections; `StoreUnavailable` after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            connection: Any = await asyncpg.connect(dsn, timeout=5)
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise StoreUnavailable(str(error)) from error  # waiting gives nobody a password
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(str(error) or type(error).__name__) from error
            log.info("database_awaited", error=str(error) or type(error).__name__)
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            await connection.close()
            return


async def create_database(dsn: str, name: str) -> None:
    """Create the database `name` unless it exists; `dsn` names another database of the server.

    Tries once: raises `StoreUnavailable` when the server does not answer.
    """
    try:
        connection: Any = await asyncpg.connect(dsn, timeout=5)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreUnavailable(str(error)) from error
