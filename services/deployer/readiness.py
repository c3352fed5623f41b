"""Health that tells the truth: what needs the database serves only while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from libs.rpc.server import Health
from libs.store import Store, StoreUnavailable

log = structlog.get_logger()

_EVERY_SECONDS = 1.0
_PATIENCE_SECONDS = 2.0


async def watch_store(store: Store, health: Health, services: Sequence[str]) -> None:
    """Say whether `services` serve, whenever that changes, without end."""
    serving = True
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        answers = await _answers(store)
        if answers != serving:
            serving = answers
            log.warning("store_answers" if answers else "store_does_not_answer")
            for service in services:
                await health.set(service, answers)


async def _answers(store: Store) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), store.connection() as connection:
            return await store.queries.is_there(connection) == 1
    except (StoreUnavailable, TimeoutError):
        return False
