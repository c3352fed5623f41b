"""What rows say about the things of builds: what is due, and what belongs to something."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from libs.store import Record, Store
from services.builder.backends.base import ARTEFACT, ENVIRONMENT, IMAGE, WORKSPACE, Thing


@dataclass(frozen=True)
class Known:
    """Builds (id, uid), claims (uid, token) and environments (digest, uid) that live."""

    builds: frozenset[tuple[str, str]]
    claims: frozenset[tuple[str, str]]
    environments: frozenset[tuple[str, str]]

    def why_orphan(self, thing: Thing) -> str:
        """Return why a thing belongs to nothing that lives; "" where it does."""
        if thing.type in (ARTEFACT, IMAGE):
            return "" if (thing.name, thing.uid) in self.builds else "no build has it"
        if thing.type == ENVIRONMENT:
            return "" if (thing.name, thing.uid) in self.environments else "no environment's row"
        if thing.type == WORKSPACE:
            return "" if (thing.uid, thing.token) in self.claims else "nobody does this build"
        doing = any(uid == thing.uid for uid, _ in self.claims)
        return "" if doing else "its build is not under way"


class Ledger:
    """Statements of reclamation. Each method raises `StoreUnavailable`."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention = retention

    async def deadlines(self, horizon: timedelta) -> list[Record]:
        """Return what ends within the horizon, or has been ended."""
        return await self._all("deadlines", horizon=horizon)

    async def end_builds(self, builds: Sequence[tuple[str, str]]) -> list[Record]:
        """End builds (id, uid) that are due; return all that there are of them."""
        ids, uids = [b for b, _ in builds], [u for _, u in builds]
        return await self._all("end_builds", ids=ids, uids=uids, retention=self._retention)

    async def end_environments(self, environments: Sequence[tuple[str, str]]) -> list[Record]:
        """End environments (digest, uid) that are due; return all that there are of them."""
        digests, uids = [d for d, _ in environments], [u for _, u in environments]
        return await self._all("end_environments", digests=digests, uids=uids)

    async def forget_environments(self, environments: Sequence[tuple[str, str]]) -> None:
        """Delete the rows of ended environments whose files are gone."""

        async def work() -> None:
            async with self._store.connection() as connection:
                await self._store.queries.forget_environments(
                    connection,
                    digests=[d for d, _ in environments],
                    uids=[u for _, u in environments],
                )

        await self._store.retrying(work)

    async def known(self) -> Known:
        """Return what lives."""
        builds = await self._all("known_builds")
        environments = await self._all("known_environments")
        return Known(
            builds=frozenset((row["id"], row["uid"]) for row in builds),
            claims=frozenset(
                (row["uid"], row["claim_token"]) for row in builds if row["claim_token"]
            ),
            environments=frozenset((row["digest"], row["uid"]) for row in environments),
        )

    async def holds_of(self, function_uids: Collection[str]) -> list[Record]:
        """Return the holds of these functions."""
        return await self._all("holds_of", function_uids=list(function_uids))

    async def _all(self, query: str, **arguments: Any) -> list[Record]:
        async def work() -> list[Record]:
            async with self._store.transaction() as connection:
                rows: Any = getattr(self._store.queries, query)(connection, **arguments)
                return [row async for row in rows]

        return await self._store.retrying(work)
