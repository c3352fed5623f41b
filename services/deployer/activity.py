"""What functions are used for, as the gateways report it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from mayfly.v1.route_pb2 import ActivityReport

from libs.store import Store, StoreUnavailable
from services.deployer.drivers.base import Driver
from services.deployer.events import utcnow
from services.deployer.rows import FunctionRow, row_of

log = structlog.get_logger()

_SEEN_SECONDS = 5.0


class Activity:
    """Keeps last uses and what is open in the rows, and tells the driver about load."""

    def __init__(
        self,
        store: Store,
        driver: Driver,
        replica: str,
        on_rows: Callable[[Sequence[FunctionRow]], None],
    ) -> None:
        self._store = store
        self._driver = driver
        self._replica = replica
        self._on_rows = on_rows
        self._open: dict[str, dict[str, int]] = {}
        self._seen: dict[str, float] = {}

    async def report(self, gateway: str, report: ActivityReport) -> None:
        """Take one report: all that was used since the last, and all that is open."""
        now_open = {f.uid: f.in_flight for f in report.functions if f.in_flight > 0}
        known = self._open.get(gateway)
        latest = utcnow()
        used: dict[str, datetime] = {}
        for function in report.functions:
            last = latest
            if not function.in_flight and function.HasField("last_use_time"):
                last = min(latest, function.last_use_time.ToDatetime(tzinfo=latest.tzinfo))
            used[function.uid] = last
        for uid in set(known or ()) - set(now_open):
            used.setdefault(uid, latest)
        try:
            await self._seen_now(gateway)
            await self._store.retrying(lambda: self._write(gateway, known, now_open, used))
            self._open[gateway] = now_open
        except StoreUnavailable as error:
            self._open.pop(gateway, None)
            log.warning("activity_not_kept", gateway=gateway, error=str(error))
        total = self._total(set(used) | set(now_open))
        try:
            for uid, in_flight in total.items():
                await self._driver.touch(uid, in_flight)
        except Exception as error:  # noqa: BLE001 - the next report tells the driver again
            log.warning("driver_not_told", error=str(error))

    def _total(self, uids: set[str]) -> dict[str, int]:
        return {uid: sum(o.get(uid, 0) for o in self._open.values()) for uid in uids}

    async def _seen_now(self, gateway: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._seen.get(gateway, -_SEEN_SECONDS) < _SEEN_SECONDS:
            return
        async with self._store.connection() as connection:
            await self._store.queries.seen_gateway(
                connection, gateway=gateway, replica=self._replica
            )
        self._seen[gateway] = now

    async def _write(
        self,
        gateway: str,
        known: dict[str, int] | None,
        now_open: dict[str, int],
        used: dict[str, datetime],
    ) -> None:
        async with self._store.transaction() as connection:
            queries = self._store.queries
            # The first report of a stream replaces whatever the gateway had open before. How much
            # is open matters only where all replicas share one world: see scaler.py.
            same = known == now_open or (
                not self._driver.shared and known is not None and known.keys() == now_open.keys()
            )
            if not same:
                stale = queries.report_usage(
                    connection,
                    gateway=gateway,
                    uids=list(now_open),
                    in_flight=list(now_open.values()),
                )
                for uid in [record["uid"] async for record in stale]:
                    used.setdefault(uid, utcnow())
            if not used:
                return
            records = queries.record_use(
                connection, uids=list(used), times=list(used.values()), replica=self._replica
            )
            rows = [row_of(record) async for record in records]
        self._on_rows(rows)

    async def forget_lost(self, after: timedelta) -> None:
        """Close what gateways had open that have not been heard of for `after`."""
        async with self._store.transaction() as connection:
            queries = self._store.queries
            records = queries.forget_gateways(connection, after=after)
            uids = sorted({record["uid"] async for record in records})
            if not uids:
                return
            times = [utcnow()] * len(uids)
            used = queries.record_use(connection, uids=uids, times=times, replica=self._replica)
            rows = [row_of(record) async for record in used]
        self._on_rows(rows)
