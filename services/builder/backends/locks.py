"""Requirements resolved for the Python of an image, once for all who require the same."""

from __future__ import annotations

import asyncio

from services.builder.backends.base import NotHere, Order, Progress
from services.builder.backends.environment.catalog import Catalog
from services.builder.backends.environment.requirements import Requested
from services.builder.backends.environment.uv import Target, Uv
from services.builder.backends.environment.uv_failures import needs_sdist
from services.builder.digest import resolution_key
from services.builder.failures import BuildFailed


class Locks:
    """Makes lock files."""

    def __init__(self, uv: Uv, catalog: Catalog, at_once: int) -> None:
        """`at_once` bounds how many uv run at the same time."""
        self._uv = uv
        self._catalog = catalog
        self._running = asyncio.Semaphore(at_once)

    async def get(
        self, order: Order, requested: Requested, target: Target, progress: Progress
    ) -> list[str]:
        """Return pinned lines with hashes; none where nothing is required there (markers).

        Example: ["six==1.17.0 --hash=sha256:47... --hash=sha256:ff..."]. Raises `NotHere` where a
        package has no wheel for the target, and `BuildFailed`.
        """
        if not requested.requirements:
            return []
        key = resolution_key(
            interpreter=target.version,
            requirements=requested.requirements,
            options=[*requested.fields(), *self._uv.deciding, "locked"],
            platform=target.platform,
        )
        known = await self._catalog.resolved(order.id, order.token, key)
        if known is not None:
            return list(known.requirements)
        try:
            async with self._running:
                with progress.span("resolve", requirements=len(requested.requirements)):
                    lines = await self._uv.lock(
                        requested, target, order.make_workspace(), order.uid, progress.log
                    )
        except BuildFailed as error:
            if needs_sdist(error):
                raise NotHere(
                    f"a requirement has no wheel for Python {target.version} on {target.platform}, "
                    f"and only `kaniko` builds source distributions: {error.message}"
                ) from error
            raise
        await self._catalog.remember(key, lines)
        return lines
