"""The loop that wakes at deadlines, has owners remove what has ended, and writes receipts."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from mayfly.v1 import janitor_pb2, reclaimer_pb2

from libs.store import StoreUnavailable
from services.janitor import clock
from services.janitor.config import Settings
from services.janitor.deadlines import Deadlines
from services.janitor.metrics import Metrics
from services.janitor.owners import Owner
from services.janitor.receipts import (
    Ending,
    Found,
    Key,
    Known,
    Receipts,
    reclaimed_receipt,
    with_findings,
)
from services.janitor.retries import Backoff
from services.janitor.spans import Ended, Interval, Spans
from services.janitor.verify import look

log = structlog.get_logger()

Outcome = reclaimer_pb2.ReclaimOutcome

# Uids a look at the world is for, at most.
_LOOK_AT = 5000
_NAMES = {
    Outcome.RESULT_RECLAIMED: "reclaimed",
    Outcome.RESULT_RENEWED: "renewed",
    Outcome.RESULT_NOT_FOUND: "not_found",
}


@dataclass(slots=True)
class Check:
    """One receipt on its way: removed, and to be looked for."""

    ending: Ending
    receipt: janitor_pb2.Receipt
    reclaim: Interval
    looks: int = 0
    # What the last look found.
    found: Found | None = None
    told: bool = False


class Reclaimer:
    """Knows every deadline; nothing that has come to its end is forgotten until it is gone."""

    def __init__(
        self,
        owners: Mapping[str, Owner],
        receipts: Receipts,
        settings: Settings,
        metrics: Metrics,
        spans: Spans,
    ) -> None:
        self._owners = owners
        self._receipts = receipts
        self._metrics = metrics
        self._spans = spans
        self._batch = settings.reclaim_batch
        self._calls = settings.reclaim_calls
        self._busy = settings.reclaim_busy.total_seconds()
        self._window = int(settings.coalesce.total_seconds() * 1e9)
        self._backoff = Backoff(settings.retry_first, settings.retry_most)
        self._endings: dict[Key, Ending] = {}
        self._by_name: defaultdict[tuple[str, str], set[Key]] = defaultdict(set)
        # Due or being reclaimed: the outcome decides, not what is said meanwhile.
        self._taken: set[Key] = set()
        self._waiting: Deadlines[Key] = Deadlines()
        self._due: defaultdict[str, deque[Key]] = defaultdict(deque)
        # Calls that keep an owner busy; those that only wait for something do not count.
        self._calls_busy: defaultdict[str, set[object]] = defaultdict(set)
        self._checks: deque[Check] = deque()
        self._checking = False
        self._later: Deadlines[Key] = Deadlines()
        self._later_checks: dict[Key, Check] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lag = 0

    # What owners say (services.janitor.owners.DeadlineSink).

    def upsert(self, owner: str, deadline: reclaimer_pb2.Deadline) -> None:
        """Take a deadline that is new or has moved."""
        key = Key(owner, deadline.name, deadline.uid)
        if not deadline.uid:
            log.error("deadline_without_uid", owner=owner, resource=deadline.name)
            return
        if not deadline.HasField("expire_time") and not deadline.ended:
            self._forget(key)
            return
        ending = self._endings.get(key) or self._know(Ending(key, 0))
        ending.expire_time = deadline.expire_time.ToNanoseconds() or clock.now()
        ending.ended = deadline.ended
        ending.traceparent = deadline.traceparent or ending.traceparent
        ending.recovered = False
        if key in self._taken:
            ending.moved = True
        else:
            self._wait(key, ending.due)

    def hint_removed(self, owner: str, name: str) -> None:
        """Ask the owner again about what has this name, since it says that something has gone.

        Names are used again, so a removal may be of an older thing than the one known here: only
        the owner's row can tell, and asking is harmless.
        """
        for key in self._by_name.get((owner, name), ()):
            if key not in self._taken:
                self._wait(key, 0)

    def snapshot_complete(self, owner: str, seen: set[tuple[str, str]]) -> None:
        """Forget what the owner has no more."""
        gone = [
            key
            for key, ending in self._endings.items()
            if key.owner == owner
            and (key.name, key.uid) not in seen
            and not ending.recovered
            # One that was asked for and not answered may have gone just so: asking again tells.
            and not ending.attempts
            and key not in self._taken
        ]
        for key in gone:
            self._forget(key)

    # How far behind it is; a thread that serves metrics may ask as well.

    @property
    def deadlines(self) -> int:
        """How many deadlines are known."""
        return len(self._endings)

    @property
    def overdue(self) -> int:
        """How many of them have passed without being reclaimed yet."""
        now = clock.now()
        return sum(ending.due <= now for ending in list(self._endings.values()))

    @property
    def lag(self) -> int:
        """From deadline to removal in ns, of the latest reclamation."""
        return self._lag

    def next_deadline(self) -> int | None:
        """Return when the janitor acts next (ns since the epoch); None when nothing ends."""
        return self._waiting.next()

    # The loop.

    async def run(self) -> None:
        """Take up what was left unfinished, then wake at deadlines, without end."""
        alarm = clock.Alarm(self._wake.set)
        try:
            self._start(self._recover())
            while True:
                self._wake.clear()
                now = clock.now()
                self._take_due(now)
                alarm.set(self._next_wake())
                await self._wake.wait()
        finally:
            alarm.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_due(self, now: int) -> None:
        for key in self._waiting.take_due(now):
            self._taken.add(key)
            self._due[key.owner].append(key)
        for key in self._later.take_due(now):
            self._checks.append(self._later_checks.pop(key))
        for owner in list(self._due):
            self._start_calls(owner)
        if self._checks and not self._checking:
            self._checking = True
            self._start(self._check())

    def _next_wake(self) -> int | None:
        times = [self._waiting.next_wake(self._window), self._later.next()]
        return min((at for at in times if at is not None), default=None)

    def _start_calls(self, owner: str) -> None:
        queue = self._due[owner]
        while queue and len(self._calls_busy[owner]) < self._calls:
            keys = [queue.popleft() for _ in range(min(self._batch, len(queue)))]
            endings = [self._endings[key] for key in keys]
            call = object()
            self._calls_busy[owner].add(call)
            self._start(self._reclaim(owner, endings, call))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recover(self) -> None:
        """Take up what a janitor that stopped had begun."""
        unfinished = None
        while unfinished is None:
            try:
                unfinished = await self._receipts.unfinished()
            except StoreUnavailable:
                log.warning("receipts_unreadable")
        now = clock.now()
        for item in unfinished:
            key = item.ending.key
            if item.receipt is not None:
                check = Check(item.ending, item.receipt, Interval(now, now), told=True)
                self._checks.append(check)
            elif key.owner not in self._owners:
                log.warning("owner_unknown", owner=key.owner, resource=key.name)
            elif key not in self._endings:
                self._know(item.ending)
                self._wait(key, 0)
        self._wake.set()

    # One batch.

    async def _reclaim(self, owner: str, endings: Sequence[Ending], call: object) -> None:
        waits = asyncio.get_running_loop().call_later(self._busy, self._not_busy, owner, call)
        try:
            await self._reclaim_batch(owner, endings)
        except Exception as error:  # whatever went wrong, nothing is forgotten
            log.error("reclaim_failed", owner=owner, count=len(endings), exc_info=error)
            self._retry(endings)
        finally:
            waits.cancel()
            self._not_busy(owner, call)

    def _not_busy(self, owner: str, call: object) -> None:
        self._calls_busy[owner].discard(call)
        self._wake.set()

    async def _reclaim_batch(self, owner: str, endings: Sequence[Ending]) -> None:
        known = await self._intend(endings)
        for ending in endings:
            ending.attempts += 1
        start = clock.now()
        targets = [reclaimer_pb2.ReclaimTarget(name=e.key.name, uid=e.key.uid) for e in endings]
        try:
            outcomes = await self._owners[owner].reclaim(targets)
        except grpc.aio.AioRpcError as error:
            log.warning("owner_cannot_reclaim", owner=owner, code=error.code().name)
            self._metrics.outcomes.labels(owner, "unreachable").inc(len(endings))
            self._retry(endings)
            return
        interval = Interval(start, clock.now())
        by_identity = {(o.name, o.uid): o for o in outcomes}
        needless: list[Key] = []
        for ending in endings:
            outcome = by_identity.get((ending.key.name, ending.key.uid), Outcome())
            self._metrics.outcomes.labels(owner, _NAMES.get(outcome.result, "failed")).inc()
            if not self._settle(ending, outcome, known, interval):
                needless.append(ending.key)
        if needless:
            await self._receipts.discard(needless)

    async def _intend(self, endings: Sequence[Ending]) -> Mapping[Key, Known]:
        try:
            return await self._receipts.intend(endings)
        except StoreUnavailable:
            # Removing matters more than being able to prove it after a crash in this very moment.
            log.warning("intentions_not_written", count=len(endings))
            return {}

    def _settle(
        self, ending: Ending, outcome: Outcome, known: Mapping[Key, Known], interval: Interval
    ) -> bool:
        """Do what an outcome asks for; return False when the intention was needless."""
        key = ending.key
        if outcome.result == Outcome.RESULT_RECLAIMED:
            self._removed(ending, outcome, interval)
            return True
        if outcome.result == Outcome.RESULT_RENEWED:
            self._rearm(ending, outcome.renewed_until.ToNanoseconds())
            return False
        if outcome.result == Outcome.RESULT_NOT_FOUND:
            if known.get(key) == "pending" or (known.get(key) == "new" and ending.attempts > 1):
                # Begun by this janitor, by one that stopped or by its double, and it is gone.
                self._removed(ending, outcome, interval)
                return True
            self._gone(ending)
            return known.get(key) == "done"
        log.warning(
            "removal_failed", resource=key.name, uid=key.uid, error=outcome.error or "no outcome"
        )
        ending.removed.extend(outcome.removed)
        self._retry([ending])
        return True

    def _removed(self, ending: Ending, outcome: Outcome, interval: Interval) -> None:
        receipt = reclaimed_receipt(ending, outcome, interval.end)
        self._lag = receipt.lag.ToNanoseconds()
        self._metrics.lag.observe(self._lag / 1e9)
        self._gone(ending)
        self._checks.append(Check(ending, receipt, interval))

    def _gone(self, ending: Ending) -> None:
        """Forget what has been removed, unless the same content was made again meanwhile."""
        self._taken.discard(ending.key)
        if ending.moved and not ending.ended and ending.expire_time > clock.now():
            again = Ending(ending.key, ending.expire_time, traceparent=ending.traceparent)
            self._know(again)
            self._wait(ending.key, again.due)
        else:
            self._forget(ending.key)

    def _rearm(self, ending: Ending, until: int) -> None:
        now = clock.now()
        ending.ended = False
        ending.moved = False
        ending.recovered = False
        ending.expire_time = until
        if until > now:
            ending.attempts = 0
            self._wait(ending.key, until)
        else:
            # The owner's clock is behind this one: its deadline has not come there yet.
            self._wait(ending.key, now + self._backoff.pause(ending.attempts))

    def _retry(self, endings: Sequence[Ending]) -> None:
        now = clock.now()
        for ending in endings:
            if ending.key in self._taken:
                self._wait(ending.key, now + self._backoff.pause(ending.attempts))

    # Looking, and receipts.

    async def _check(self) -> None:
        try:
            while self._checks:
                count = min(len(self._checks), _LOOK_AT)
                checks = [self._checks.popleft() for _ in range(count)]
                try:
                    await self._check_batch(checks)
                except Exception as error:  # whatever went wrong, looked at again
                    log.error("verification_failed", count=count, exc_info=error)
                    self._check_later(checks)
        finally:
            self._checking = False
            self._wake.set()

    async def _check_batch(self, checks: Sequence[Check]) -> None:
        await self._remove_residue([check.found for check in checks if check.found])
        start = clock.now()
        found = await look(self._owners, [check.receipt for check in checks])
        interval = Interval(start, clock.now())
        for check in checks:
            check.looks += 1
            check.found = found[check.receipt.uid]
            check.receipt = with_findings(check.receipt, check.found)
        await self._receipts.save([(check.ending, check.receipt) for check in checks])
        for check in checks:
            if not check.told:
                check.told = True
                self._spans.add(
                    Ended(check.ending.traceparent, check.receipt, check.reclaim, interval)
                )
        dirty = [check for check in checks if not check.receipt.verified]
        for check in dirty:
            kinds = sorted({resource.type for resource in check.receipt.residue})
            log.warning("residue", resource=check.receipt.resource, kinds=kinds)
        self._metrics.unverified.inc(len(dirty))
        self._check_later(dirty)

    async def _remove_residue(self, found: Sequence[Found]) -> None:
        """Have each owner remove what it found the last time and should have removed before."""
        for name, owner in self._owners.items():
            residue = [r for one in found for r in one.residue_by_owner.get(name, ())]
            if not residue:
                continue
            try:
                await owner.reclaim(orphans=residue)
            except grpc.aio.AioRpcError as error:
                log.warning("owner_cannot_reclaim", owner=name, code=error.code().name)

    def _check_later(self, checks: Sequence[Check]) -> None:
        now = clock.now()
        for check in checks:
            key = check.ending.key
            self._later_checks[key] = check
            self._later.upsert(key, now + self._backoff.pause(max(check.looks, 1)))

    # Bookkeeping.

    def _know(self, ending: Ending) -> Ending:
        key = ending.key
        self._endings[key] = ending
        self._by_name[key.owner, key.name].add(key)
        return ending

    def _wait(self, key: Key, at: int) -> None:
        self._taken.discard(key)
        self._waiting.upsert(key, at)
        self._wake.set()

    def _forget(self, key: Key) -> None:
        if key in self._taken or self._endings.pop(key, None) is None:
            return
        self._waiting.remove(key)
        namesakes = self._by_name[key.owner, key.name]
        namesakes.discard(key)
        if not namesakes:
            del self._by_name[key.owner, key.name]
