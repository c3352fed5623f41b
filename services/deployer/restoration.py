"""Gives the driver back what it has to run, from rows: after a start, and when it lost all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from mayfly.v1.build_pb2 import Artefact
from mayfly.v1.function_pb2 import Function, State

from libs.store import Store, StoreUnavailable
from services.deployer.drivers.base import Driver, DriverUnavailable, Endpoint, Workload
from services.deployer.effective import workload_of
from services.deployer.journal import NO_GUARD, Change, Guard, Journal, mask_of
from services.deployer.lookup import Lookup
from services.deployer.rows import RUNNABLE, FunctionRow, row_of
from services.deployer.view import Viewpoint

log = structlog.get_logger()

_PAGE = 500
_AGAIN_SECONDS = 0.5
_RUNNABLE = Guard(mask=mask_of(RUNNABLE))


class Restoration:
    """Gives the driver back what it has to run, from rows."""

    def __init__(
        self,
        store: Store,
        lookup: Lookup,
        driver: Driver,
        journal: Journal,
        viewpoint: Viewpoint,
        target: str,
        reserved: set[str],
        on_rows: Callable[[Sequence[FunctionRow]], None],
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._driver = driver
        self._journal = journal
        self._viewpoint = viewpoint
        self._target = target
        self._reserved = reserved
        self._on_rows = on_rows

    async def restore(self) -> int:
        """Restore every function that lives and has an address; return how many.

        Raises what the driver raises; all of it may be repeated.
        """
        count = 0
        async for rows in self.pages():
            live = [row for row in rows if _is_served(row)]
            workloads = {row.uid: w for row in live if (w := self._workload(row)) is not None}
            # A port may have been taken meanwhile; a path in the driver's directory cannot.
            asked = [
                row
                for row in live
                if self._driver.reserves and (row.uid not in workloads or _is_port(row.endpoint))
            ]
            addresses = {row.uid: row.endpoint for row in live}
            moved = await asyncio.gather(*(self._reserve(row) for row in asked))
            addresses.update(zip((row.uid for row in asked), moved, strict=True))
            if workloads:
                await self._driver.restore(
                    list(workloads.values()),
                    {uid: Endpoint.parse(addresses[uid]) for uid in workloads},
                )
            if self._driver.reserves:
                self._reserved.update(addresses)
            # Only now: a route that is known is sent.
            self._on_rows([_at(row, addresses) for row in rows])
            count += len(live)
        return count

    async def wanted(self, uid: str) -> Workload | None:
        """Return what a function is to run by its row as it is now; None for one that has ended,
        has failed or was never ready. Raises DriverUnavailable where the store is away."""
        try:
            rows = await self._lookup.by_uids([uid])
        except StoreUnavailable as error:
            raise DriverUnavailable(f"what it is to run cannot be read: {error}") from error
        served = [row for row in rows if _is_served(row)]
        return self._workload(served[0]) if served else None

    async def _reserve(self, row: FunctionRow) -> str:
        kind = "script" if _is_port(row.endpoint) else "handler"
        try:
            return (await self._driver.reserve(row.uid, kind, row.endpoint)).address
        except Exception as error:  # noqa: BLE001 - one address must not hold up all functions
            log.warning("address_lost", function=row.id, address=row.endpoint, error=str(error))
        address = (await self._driver.reserve(row.uid, kind, None)).address
        self._journal.put(row.uid, Change(endpoint=address), (), NO_GUARD)
        return address

    async def pages(self):
        """Yield all rows that are not tombstones, a page at a time."""
        after = ""
        while True:
            async with self._store.connection() as connection:
                records = self._store.queries.unreclaimed_functions(
                    connection, target=self._target, after=after, count=_PAGE
                )
                rows = [row_of(record) async for record in records]
            if rows:
                yield rows
                after = rows[-1].uid
            if len(rows) < _PAGE:
                return

    def _workload(self, row: FunctionRow) -> Workload | None:
        if not row.serving_artefact or row.ready_generation == 0:
            return None
        artefact = Artefact.FromString(row.serving_artefact)
        if artefact.directory and not Path(artefact.directory).is_dir():
            # Its files are gone: it is built and deployed again, behind the same address.
            log.warning("artefact_missing", function=row.id, directory=artefact.directory)
            self._journal.put(row.uid, Change(ready=0), (), _RUNNABLE)
            return None
        spec = Function.FromString(row.serving_spec or row.spec)
        return workload_of(
            row.id, row.uid, row.ready_generation, spec, artefact,
            self._viewpoint.url(row.id), self._viewpoint.defaults,
        )  # fmt: skip


def _is_served(row: FunctionRow) -> bool:
    """Whether something waits or answers for it; a cold one has no address."""
    reachable = bool(row.endpoint) or row.state in RUNNABLE
    return not row.ended and reachable and row.state != State.STATE_FAILED


def _is_port(address: str) -> bool:
    return address.startswith("tcp:")


def _at(row: FunctionRow, addresses: Mapping[str, str]) -> FunctionRow:
    address = addresses.get(row.uid, row.endpoint)
    return row if address == row.endpoint else replace(row, endpoint=address)


async def until_done(work: Callable[[], Awaitable[object]], what: str) -> None:
    """Do `work` until it succeeds."""
    while True:
        try:
            await work()
            return
        except Exception as error:
            log.error("try_again", what=what, exc_info=error)
            await asyncio.sleep(_AGAIN_SECONDS)
