"""A service's schema at its start: awaited, brought up to date, opened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from libs.rpc.process import StartError
from libs.store.database import until_answers
from libs.store.errors import StoreUnavailable
from libs.store.migrate import upgrade
from libs.store.store import Store

log = structlog.get_logger()


@dataclass(frozen=True)
class Schema:
    """A service's part of the database: its name, its queries' file, its migrations' folder."""

    name: str
    queries: Path
    migrations: Path


async def start_store(
    url: str, schema: Schema, wait: timedelta, *, min_size: int = 1, max_size: int = 8
) -> Store:
    """Return the store of an up-to-date schema; waits for a PostgreSQL that is not there yet.

    Raises `StartError`, which names the setting.
    """
    try:
        await until_answers(url, wait.total_seconds())
        await asyncio.to_thread(upgrade, url, schema.name, schema.migrations)
        return await Store.open(
            url, schema.name, schema.queries, min_size=min_size, max_size=max_size
        )
    except StoreUnavailable as error:
        raise StartError(f"MAYFLY_DATABASE_URL: PostgreSQL does not answer: {error}") from error
