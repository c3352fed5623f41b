"""Databases of a server: made where they are missing."""

from __future__ import annotations

from typing import Any

import asyncpg

from libs.store.errors import StoreUnavailable


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
