"""The rows of builds, their holds and their events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mayfly.v1.build_pb2 import Build
from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError
from libs.store import Record, Store
from services.builder.backends.base import Kind, Made
from services.builder.batcher import Batcher
from services.builder.changes import BUILDS, QUEUE
from services.builder.config import Settings
from services.builder.view import is_over, made_of

SCHEMA = "builder"
QUERIES = Path(__file__).parent / "queries.sql"
MIGRATIONS = Path(__file__).parent / "migrations"
_TRIES = 20
_MOST_RELEASES = 500


@dataclass(frozen=True)
class Wanted:
    """A build that somebody asks for; `until` says how long the function needs it."""

    id: str
    uid: str
    runtime: str
    kind: Kind
    source: bytes
    traceparent: str
    function_uid: str = ""
    function: str = ""
    until: datetime | None = None


@dataclass(frozen=True)
class Released:
    """A hold that was given up.

    `made`: nobody holds the build any more, and what it made can go; None where others have it.
    """

    build: str
    made: Made | None
    environment: str | None


class Builds:
    """Statements; each method is one, or one transaction, and raises `StoreUnavailable`."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self._queries = store.queries
        self._replica = settings.replica_name
        self._claim = settings.build_claim
        self._patience = settings.build_timeout
        self._retention = settings.build_retention
        self._releases: Batcher[tuple[str, str], list[Released]] = Batcher(
            self._release_batch, _MOST_RELEASES
        )

    async def create(self, wanted: Wanted, token: str, *, at_once: bool) -> Record:
        """Return the build of this content, held. It is ours to do when its claim is `token`.

        `at_once`: claim it; else it is queued for whoever has room.
        """

        async def work() -> Record | None:
            async with self.store.connection() as connection:
                return await self._queries.create_build(
                    connection,
                    id=wanted.id,
                    uid=wanted.uid,
                    runtime=wanted.runtime,
                    kind=wanted.kind,
                    source=wanted.source,
                    traceparent=wanted.traceparent,
                    state=Build.STATE_RUNNING if at_once else Build.STATE_QUEUED,
                    replica=self._replica,
                    token=token,
                    claim=self._claim,
                    patience=self._patience,
                    retention=self._retention,
                    function_uid=wanted.function_uid,
                    function=wanted.function,
                    until=wanted.until,
                )

        for _ in range(_TRIES):
            row = await self.store.retrying(work)
            if row is not None:
                if row["state"] == Build.STATE_QUEUED:
                    await self._notify(QUEUE, "")
                return row
        raise MayflyError(
            ErrorReason.ERROR_REASON_UNAVAILABLE,
            f"builds/{wanted.id} is being made and removed at the same time",
            fix="try again",
        )

    async def rebuild(
        self, row: Record, source: bytes, traceparent: str, token: str
    ) -> Record | None:
        """Begin a build again whose files are gone; None when somebody else has."""
        async with self.store.transaction() as connection:
            again = await self._queries.rebuild(
                connection,
                id=row["id"],
                uid=row["uid"],
                source=source,
                traceparent=traceparent,
                replica=self._replica,
                token=token,
                claim=self._claim,
            )
            if again is not None:
                await self._queries.forget_events(connection, id=row["id"])
            return again

    async def claim(self, token: str, running: Sequence[str], count: int) -> list[Record]:
        """Claim builds that nobody does."""
        async with self.store.transaction() as connection:
            rows: Any = self._queries.claim_builds(
                connection,
                replica=self._replica,
                token=token,
                claim=self._claim,
                running=list(running),
                count=count,
            )
            return await _all(rows)

    async def free_own_claims(self) -> None:
        """Free what a predecessor of this replica's name was doing."""
        async with self.store.connection() as connection:
            await self._queries.free_own_claims(connection, replica=self._replica)

    async def keep_claims(self, tokens: Sequence[str]) -> set[str]:
        """Keep claims; return those that are still wanted of this worker."""
        async with self.store.transaction() as connection:
            rows: Any = await _all(
                self._queries.keep_claims(connection, tokens=list(tokens), claim=self._claim)
            )
        return {row["claim_token"] for row in rows}

    async def give_back(self, token: str) -> None:
        """Queue a build again that this worker cannot finish."""
        async with self.store.connection() as connection:
            await self._queries.give_back(connection, token=token)
        await self._notify(QUEUE, "")

    async def last_sequence(self, build: str) -> int:
        """Return the last sequence number of a build's events, 0 when it has none."""
        async with self.store.connection() as connection:
            return await self._queries.last_sequence(connection, id=build)

    async def add_events(self, build: str, token: str, first: int, items: list[bytes]) -> bool:
        """Write events; return whether the claim is still this one's."""
        async with self.store.connection() as connection:
            watched = await self._queries.add_events(
                connection, id=build, token=token, first=first, items=items
            )
            if watched:
                await self.store.notify(connection, BUILDS, build)
        return watched is not None

    async def finish(
        self,
        build: str,
        token: str,
        outcome: Build,
        retry: timedelta | None,
        first: int,
        items: list[bytes],
    ) -> Record | None:
        """End a build; None when the claim was lost. Its bundle is kept beside its row."""
        bundle, lock = outcome.artefact.bundle, outcome.artefact.lock
        if bundle:
            outcome.artefact.ClearField("bundle")
            outcome.artefact.ClearField("lock")

        async def work() -> Record | None:
            async with self.store.connection() as connection:
                row = await self._queries.finish_build(
                    connection,
                    id=build,
                    token=token,
                    state=outcome.state,
                    outcome=outcome.SerializeToString(),
                    retry=retry,
                    retention=self._retention,
                    first=first,
                    items=items,
                    bundle=bundle,
                    lock=lock,
                )
                if row is not None and row["watched"]:
                    await self.store.notify(connection, BUILDS, build)
                return row

        return await self.store.retrying(work)

    async def bundle(self, build: str) -> tuple[bytes, str]:
        """Return a build's bundle and lock, empty where it has none."""
        async with self.store.connection() as connection:
            row: Any = await self._queries.get_bundle(connection, id=build)
        return (bytes(row["bundle"]), str(row["lock"])) if row is not None else (b"", "")

    async def get(self, build: str) -> Record | None:
        """Return a row, None where there is none."""
        async with self.store.connection() as connection:
            return await self._queries.get_build(connection, id=build)

    async def made(self, builds: Sequence[str]) -> list[Made]:
        """Return what those of these builds have made that are not under way."""
        async with self.store.transaction() as connection:
            rows = await _all(self._queries.ended_builds(connection, ids=list(builds)))
        return [made_of(row["id"], row["uid"], row["outcome"]) for row in rows]

    async def watch(self, build: str, after: int, *, here: bool) -> Record | None:
        """Return a row with its events after a sequence number in `items`."""
        row: Record | None = None
        for _ in range(_TRIES):
            async with self.store.connection() as connection:
                row = await self._queries.watch_build(connection, id=build, after=after, here=here)
            # It may have ended while it was being marked: then this row is older than its end.
            if row is None or here or row["told"] or is_over(row):
                return row
        return row

    async def page(self, time: datetime, build: str, count: int) -> list[Record]:
        """Return rows before a position, newest first."""
        async with self.store.transaction() as connection:
            return await _all(
                self._queries.list_builds(
                    connection, before_time=time, before_id=build, count=count
                )
            )

    async def hold(self, build: str, function_uid: str, until: datetime) -> bool:
        """Hold a build for a function; False when there is none."""

        async def work() -> bool:
            async with self.store.connection() as connection:
                return bool(
                    await self._queries.hold_build(
                        connection,
                        id=build,
                        function_uid=function_uid,
                        until=until,
                        retention=self._retention,
                    )
                )

        return await self.store.retrying(work)

    async def release(self, function_uid: str, build: str) -> list[Released]:
        """Give up a function's hold of a build, of all its builds where `build` is empty."""
        return await self._releases.add((function_uid, build))

    async def forget(self, builds: Sequence[tuple[str, str]]) -> None:
        """Delete the rows of ended builds (id, uid)."""

        async def work() -> None:
            async with self.store.connection() as connection:
                await self._queries.forget_builds(
                    connection, ids=[b for b, _ in builds], uids=[u for _, u in builds]
                )

        await self.store.retrying(work)

    async def ping(self) -> None:
        """Ask the database for a sign of life."""
        async with self.store.connection() as connection:
            await self._queries.ping(connection)

    async def counts(self) -> Record:
        """Return how many builds and environments there are."""
        async with self.store.connection() as connection:
            return await self._queries.counts(connection)

    async def drop_old_resolutions(self, age: timedelta) -> None:
        """Forget resolutions that are too old to be used."""
        async with self.store.connection() as connection:
            await self._queries.drop_old_resolutions(connection, age=age)

    async def _release_batch(self, items: Sequence[tuple[str, str]]) -> list[list[Released]]:
        uids, builds = [uid for uid, _ in items], [build for _, build in items]

        async def work() -> list[Record]:
            async with self.store.transaction() as connection:
                await _all(self._queries.lock_held(connection, function_uids=uids, builds=builds))
                return await _all(
                    self._queries.release_holds(
                        connection,
                        function_uids=uids,
                        builds=builds,
                        retention=self._retention,
                    )
                )

        rows = await self.store.retrying(work)
        released: dict[str, list[Released]] = {}
        for row in rows:
            released.setdefault(row["function_uid"], []).append(
                Released(
                    row["build"],
                    made_of(row["build"], row["build_uid"], row["outcome"]) if row["uid"] else None,
                    row["environment"],
                )
            )
        return [
            [one for one in released.get(uid, []) if build in ("", one.build)]
            for uid, build in items
        ]

    async def _notify(self, channel: str, payload: str) -> None:
        async with self.store.connection() as connection:
            await self.store.notify(connection, channel, payload)


async def _all(rows: Any) -> list[Record]:
    # A query of many rows is a cursor, which wants a transaction around it.
    return [row async for row in rows]
