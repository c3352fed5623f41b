"""The rows of environments and of resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from libs.store import Store
from services.builder.failures import ClaimLost


@dataclass(frozen=True)
class EnvironmentRow:
    """An environment that a build has been given; `users` counts the other builds that use it."""

    digest: str
    uid: str
    users: int


@dataclass(frozen=True)
class Resolution:
    """Pinned lines, and the environment made of them where there is one."""

    requirements: Sequence[str]
    environment: EnvironmentRow | None


class Catalog:
    """Environments by digest. What a build is given stays at least as long as the build's row."""

    def __init__(self, store: Store, resolution_age: timedelta) -> None:
        self._store = store
        self._age = resolution_age

    async def resolved(self, build: str, token: str, key: str) -> Resolution | None:
        """Return a resolution that is fresh enough, with its environment given to the build."""
        async with self._store.connection() as connection:
            row: Any = await self._store.queries.use_resolution(
                connection, build=build, token=token, key=key, age=self._age
            )
        if row is None:
            return None
        known = row["uid"] is not None
        environment = (
            EnvironmentRow(row["environment"], row["uid"], row["users"]) if known else None
        )
        return Resolution(tuple(row["requirements"]), environment)

    async def use(
        self,
        build: str,
        token: str,
        *,
        key: str,
        digest: str,
        uid: str,
        interpreter: str,
        requirements: Sequence[str],
    ) -> EnvironmentRow:
        """Give the build an environment, whose row is made where there is none (with `uid`).

        Raises `ClaimLost`.
        """
        async with self._store.connection() as connection:
            row: Any = await self._store.queries.use_environment(
                connection,
                build=build,
                token=token,
                key=key,
                digest=digest,
                uid=uid,
                interpreter=interpreter,
                requirements=list(requirements),
            )
        if row is None:
            raise ClaimLost(build)
        return EnvironmentRow(digest, row["uid"], row["users"])

    async def remember_empty(self, key: str) -> None:
        """Keep that these requirements come to nothing on this machine (markers)."""
        async with self._store.connection() as connection:
            await self._store.queries.save_resolution(connection, key=key)

    async def remember(self, key: str, requirements: Sequence[str]) -> None:
        """Keep what requirements come to where no environment is made of them."""
        async with self._store.connection() as connection:
            await self._store.queries.keep_resolution(
                connection, key=key, requirements=list(requirements)
            )
