"""Finds functions whose images somebody has removed from the registry, before a node pulls them.

A node that has an image does not ask for it, so that what runs says nothing; the next node would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from libs.store import Store, StoreUnavailable
from services.deployer.builds import BuilderUnavailable, Builds
from services.deployer.drivers.base import ArtefactLost
from services.deployer.events import lost_image

log = structlog.get_logger()

_MOST_PAUSE_SECONDS = 600.0


@dataclass(frozen=True)
class Try:
    """An image that was to be made again: how often so far, and until when that is left alone."""

    count: int
    until: float


Tries = Mapping[str, Try]
"""By uid."""


def due(serving: Mapping[str, str], tries: Tries, now: float) -> dict[str, str]:
    """Return those functions (uid to build) whose images are to be looked at."""
    return {
        uid: build for uid, build in serving.items() if uid not in tries or tries[uid].until <= now
    }


def after(
    tries: Tries, due: Collection[str], lost: Collection[str], now: float, every: float
) -> dict[str, Try]:
    """Return the tries after a look: those that were looked at and are not lost are forgotten.

    One that is lost again and again, since it cannot be built, is tried less and less often.
    """
    kept = {
        uid: one
        for uid, one in tries.items()
        if uid not in due and one.until + _MOST_PAUSE_SECONDS > now
    }
    for uid in lost:
        count = tries[uid].count + 1 if uid in tries else 1
        pause = min(_MOST_PAUSE_SECONDS, every * 2 ** min(count, 16))
        kept[uid] = Try(count, now + pause)
    return kept


class LostImages:
    """One replica's look at the images of all functions, every few seconds."""

    def __init__(
        self,
        store: Store,
        builds: Builds,
        target: str,
        every: float,
        tell: Callable[[ArtefactLost], None],
    ) -> None:
        """`every` is in seconds; 0: never."""
        self._store = store
        self._builds = builds
        self._target = target
        self._every = every
        self._tell = tell
        self._tries: dict[str, Try] = {}

    async def run(self) -> None:
        """Look without end."""
        while self._every:
            await asyncio.sleep(self._every)
            try:
                await self._look()
            except (BuilderUnavailable, StoreUnavailable) as error:
                # What was not looked at is not known to be gone.
                log.warning("images_not_looked_at", error=str(error))

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        wanted = due(await self._serving(), self._tries, now)
        if not wanted:
            return
        gone = frozenset(await self._builds.lost_images(sorted(set(wanted.values()))))
        lost = [uid for uid, build in wanted.items() if build in gone]
        self._tries = after(self._tries, wanted, lost, now, self._every)
        for uid in lost:
            self._tell(ArtefactLost(uid, lost_image(wanted[uid])))

    async def _serving(self) -> dict[str, str]:
        async with self._store.connection() as connection:
            records = self._store.queries.serving_builds(connection, target=self._target)
            return {record["uid"]: record["serving_build"] async for record in records}
