"""What has to be done now and then: tombstones that are over, gateways that are lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from libs.store import Store, StoreUnavailable
from services.deployer.activity import Activity

log = structlog.get_logger()

_EVERY_SECONDS = 10.0
_GATEWAY_LOST = timedelta(seconds=60)
_ANSWER_LOST = timedelta(seconds=60)
_COUNT = 500


async def keep_house(store: Store, activity: Activity, retention: timedelta) -> None:
    """Do it every few seconds, without end."""
    every = min(_EVERY_SECONDS, max(0.2, retention.total_seconds() / 2))
    while True:
        await asyncio.sleep(every)
        try:
            await activity.forget_lost(_GATEWAY_LOST)
            await _forget_answers(store)
            while await _forget(store, retention) == _COUNT:
                pass
        except StoreUnavailable as error:
            log.warning("housekeeping_put_off", error=str(error))


async def _forget_answers(store: Store) -> None:
    async with store.connection() as connection:
        await store.queries.forget_inventories(connection, after=_ANSWER_LOST)


async def _forget(store: Store, retention: timedelta) -> int:
    async with store.connection() as connection:
        records = store.queries.forget_tombstones(connection, retention=retention, count=_COUNT)
        return len([record async for record in records])
