"""Looking for what belongs to nothing that lives, at every owner, and removing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
import structlog
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from libs.store import StoreUnavailable
from services.janitor.metrics import Metrics
from services.janitor.owners import Owner
from services.janitor.receipts import Receipts

log = structlog.get_logger()

Finding = janitor_pb2.SweepFinding
Resource = reclaimer_pb2.Resource
Outcome = reclaimer_pb2.ReclaimOutcome


@dataclass
class _Tally:
    """What one sweep has come to so far."""

    found: int = 0
    removed: int = 0
    looked_at: list[str] = field(default_factory=list[str])
    unreachable: list[str] = field(default_factory=list[str])

    def summary(self) -> janitor_pb2.SweepSummary:
        return janitor_pb2.SweepSummary(
            found=self.found,
            removed=self.removed,
            looked_at=sorted(self.looked_at),
            unreachable=sorted(self.unreachable),
        )


class Sweeper:
    """Sweeps when asked, and by itself at an interval."""

    def __init__(
        self, owners: Mapping[str, Owner], receipts: Receipts, metrics: Metrics, batch: int
    ) -> None:
        self._owners = owners
        self._receipts = receipts
        self._metrics = metrics
        self._batch = batch

    async def sweep(self, *, dry_run: bool) -> AsyncGenerator[janitor_pb2.SweepResponse]:
        """Stream findings as the owners come upon them, and the summary last.

        Owners are asked at the same time; one that cannot be asked is named in the summary and
        keeps nobody else from being swept.
        """
        start = datetime.now(UTC)
        tally = _Tally()
        findings: asyncio.Queue[Finding | None] = asyncio.Queue(self._batch)
        work = asyncio.create_task(self._ask_all(tally, findings, dry_run))
        try:
            while (finding := await findings.get()) is not None:
                tally.found += 1
                tally.removed += finding.removed
                yield janitor_pb2.SweepResponse(finding=finding)
            await work
        finally:
            work.cancel()
            await asyncio.wait([work])
        summary = tally.summary()
        await self._receipts.add_sweep(start, datetime.now(UTC), summary, dry_run=dry_run)
        yield janitor_pb2.SweepResponse(summary=summary)

    async def run(self, interval: timedelta, retention: timedelta) -> None:
        """Sweep once every owner is connected and then at an interval, without end."""
        await asyncio.gather(*(owner.connected.wait() for owner in self._owners.values()))
        while True:
            try:
                await self._sweep_quietly()
                await self._receipts.drop_old(retention)
            except StoreUnavailable:
                log.warning("sweep_not_recorded")
            await asyncio.sleep(interval.total_seconds())

    async def _sweep_quietly(self) -> None:
        async with aclosing(self.sweep(dry_run=False)) as responses:
            async for response in responses:
                if response.HasField("finding"):
                    finding = response.finding
                    log.warning(
                        "orphan",
                        kind=finding.resource.type,
                        id=finding.resource.id,
                        removed=finding.removed,
                        error=finding.error,
                    )

    async def _ask_all(
        self, tally: _Tally, findings: asyncio.Queue[Finding | None], dry_run: bool
    ) -> None:
        try:
            await asyncio.gather(
                *(self._ask(owner, tally, findings, dry_run) for owner in self._owners.values())
            )
        finally:
            # After a failure the reader goes on to await this task, which tells of it.
            await findings.put(None)

    async def _ask(
        self,
        owner: Owner,
        tally: _Tally,
        findings: asyncio.Queue[Finding | None],
        dry_run: bool,
    ) -> None:
        try:
            async for response in owner.orphans():
                tally.looked_at.extend(f"{owner.name}: {what}" for what in response.looked_at)
                # An owner may name more than it was asked for; only orphans are ever removed.
                orphans = [resource for resource in response.resources if resource.orphan]
                for some in _batches(orphans, self._batch):
                    for finding in await self._settle(owner, some, dry_run):
                        self._metrics.orphans.labels(owner.name, str(finding.removed)).inc()
                        await findings.put(finding)
        except grpc.aio.AioRpcError as error:
            why = error.details() or error.code().name
            tally.unreachable.append(f"{owner.name}: {why}")

    async def _settle(
        self, owner: Owner, orphans: Sequence[Resource], dry_run: bool
    ) -> list[Finding]:
        if dry_run:
            return [Finding(resource=resource) for resource in orphans]
        try:
            outcomes = await owner.reclaim(orphans=orphans)
        except grpc.aio.AioRpcError as error:
            why = error.details() or error.code().name
            return [Finding(resource=resource, error=why) for resource in orphans]
        return findings_of(orphans, outcomes)


def findings_of(orphans: Sequence[Resource], outcomes: Sequence[Outcome]) -> list[Finding]:
    """Return what became of each orphan; outcomes come in their order."""
    findings: list[Finding] = []
    for index, resource in enumerate(orphans):
        outcome = outcomes[index] if index < len(outcomes) else Outcome(error="no outcome")
        # What is not there any more when it is to be removed has removed itself.
        gone = outcome.result in (Outcome.RESULT_RECLAIMED, Outcome.RESULT_NOT_FOUND)
        error = "" if gone else outcome.error or "the owner says that it is no orphan any more"
        findings.append(Finding(resource=resource, removed=gone, error=error))
    return findings


def _batches(resources: Sequence[Resource], size: int) -> list[Sequence[Resource]]:
    return [resources[i : i + size] for i in range(0, len(resources), size)]
