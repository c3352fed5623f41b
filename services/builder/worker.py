"""Does builds: those this replica was asked for, and those that others left."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog
from mayfly.v1.build_pb2 import Artefact, Build
from mayfly.v1.source_pb2 import Failure
from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from libs.store import Record, StoreUnavailable
from libs.telemetry.traceparent import context_of
from services.builder.backends.base import Made, Order
from services.builder.builds import Builds
from services.builder.changes import Changes
from services.builder.choice import Choice
from services.builder.config import Settings
from services.builder.directories import Directories, remove
from services.builder.failures import BuildFailed, ClaimLost, retry_after
from services.builder.journal import Journal
from services.builder.metrics import Metrics
from services.builder.view import build_of

log = structlog.get_logger()

# Log lines that come within this time are written together.
FLUSH_SECONDS = 0.05
LOOK_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 0.05
CANCEL_SECONDS = 5.0
_MOST_ATTEMPTS = 3


class Worker:
    """Builds of this replica: each a task that owns a claim."""

    def __init__(
        self,
        builds: Builds,
        choice: Choice,
        directories: Directories,
        changes: Changes,
        settings: Settings,
        tracer: Tracer,
        metrics: Metrics,
    ) -> None:
        self._builds = builds
        self._choice = choice
        self._directories = directories
        self._changes = changes
        self._settings = settings
        self._tracer = tracer
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[Build | None]] = {}
        self._by_token: dict[str, asyncio.Task[Build | None]] = {}
        self._stopping = False

    @property
    def has_room(self) -> bool:
        """Whether another build may begin here."""
        return not self._stopping and len(self._tasks) < self._settings.concurrent_builds

    def does(self, build: str) -> bool:
        """Whether a build is under way in this process."""
        return build in self._tasks

    def start(
        self, row: Record, source: bytes, context: Context | None = None
    ) -> asyncio.Task[Build | None]:
        """Begin a build whose claim is ours; the task returns it ended, None when it was lost."""
        token: str = row["claim_token"]
        task = asyncio.create_task(self._do(row, source, context))
        self._tasks[row["id"]] = task
        self._by_token[token] = task

        def forget(_: asyncio.Task[Build | None]) -> None:
            self._by_token.pop(token, None)
            if self._tasks.get(row["id"]) is task:
                del self._tasks[row["id"]]
            self._changes.tell(row["id"])
            if len(self._tasks) == self._settings.concurrent_builds - 1:
                self._changes.queue.set()  # there was no room, and now there is

        task.add_done_callback(forget)
        return task

    async def cancel(self, builds: Iterable[str]) -> None:
        """Stop builds that nobody wants any more, and wait until they have stopped."""
        tasks = [task for build in builds if (task := self._tasks.get(build))]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    async def run(self) -> None:
        """Take up what nobody does, without end."""
        await self._until_answered()
        pause = LOOK_SECONDS
        while True:
            self._changes.queue.clear()
            if self.has_room:
                await self._claim()
            try:
                async with asyncio.timeout(pause):
                    await self._changes.queue.wait()
                # A row that somebody has just locked is passed over: look again soon.
                pause = LOOK_AGAIN_SECONDS
            except TimeoutError:
                pause = min(pause * 4, LOOK_SECONDS)

    async def keep_claims(self) -> None:
        """Say that the builds of this replica go on, and stop those that are not wanted."""
        pause = self._settings.build_claim.total_seconds() / 3
        while True:
            await asyncio.sleep(pause)
            tokens = list(self._by_token)
            if not tokens:
                continue
            try:
                kept = await self._builds.keep_claims(tokens)
            except StoreUnavailable:
                continue
            for token in tokens:
                task = self._by_token.get(token)
                if token not in kept and task is not None:
                    task.cancel()

    async def stop(self) -> None:
        """Stop all builds and give them back, for others or for the next start."""
        self._stopping = True
        tasks: Mapping[str, asyncio.Task[Build | None]] = dict(self._by_token)
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for token in tasks:
            with suppress(StoreUnavailable):
                await self._builds.give_back(token)

    async def _until_answered(self) -> None:
        while True:
            try:
                return await self._builds.free_own_claims()
            except StoreUnavailable:
                log.warning("claims_not_read")

    async def _claim(self) -> None:
        room = self._settings.concurrent_builds - len(self._tasks)
        try:
            rows = await self._builds.claim(secrets.token_hex(6), list(self._by_token), room)
        except StoreUnavailable:
            return
        for row in rows:
            log.info("build_taken_up", build=row["id"], attempts=row["attempts"])
            self.start(row, row["source"] or b"", context_of(row["traceparent"]))

    async def _do(self, row: Record, source: bytes, context: Context | None) -> Build | None:
        build, token = row["id"], row["claim_token"]
        try:
            after = await self._builds.last_sequence(build) if context is not None else 0
            wake = asyncio.Event()
            journal = Journal(
                self._tracer, after=after, max_lines=self._settings.max_log_lines, wake=wake.set
            )
            if after:
                journal.log("the build begins again: its worker has gone")
            flusher = asyncio.create_task(self._flush(build, token, journal, wake))
            try:
                with self._tracer.start_as_current_span(
                    "builder", context=context, attributes={"mayfly.build": build}
                ):
                    outcome = await self._outcome(row, source, journal)
            finally:
                flusher.cancel()
                with suppress(asyncio.CancelledError):
                    await flusher
            return await self._finish(row, outcome, journal)
        except ClaimLost:
            log.info("claim_lost", build=build)
        except StoreUnavailable:
            # Nothing can be written: the claim runs out, and whoever is there then goes on.
            log.warning("build_interrupted", build=build)
        except asyncio.CancelledError:
            await asyncio.shield(self._clean_up(row))
            raise
        await self._clean_up(row)
        return None

    async def _outcome(self, row: Record, source: bytes, journal: Journal) -> Build:
        uid, token = row["uid"], row["claim_token"]
        order = Order(
            id=row["id"],
            uid=row["uid"],
            token=row["claim_token"],
            runtime=row["runtime"],
            kind=row["kind"],
            source=source,
            directory=self._directories.artefact(row["id"], row["uid"]),
            files=self._directories.files(uid, token),
            workspace=self._directories.workspace(uid, token),
        )
        try:
            if row["attempts"] > _MOST_ATTEMPTS:
                raise BuildFailed(
                    "INTERNAL",
                    f"the build was begun {_MOST_ATTEMPTS} times and its worker ended each time",
                    "look at the builder's logs, and at the machine's memory",
                )
            artefact = await self._build(order, journal)
        except BuildFailed as error:
            journal.close()
            failure = error.to_proto(journal.stage, journal.tail)
            return Build(state=Build.STATE_FAILED, failure=failure, steps=journal.steps)
        finally:
            await _remove([order.files, order.workspace])
        journal.close()
        return Build(state=Build.STATE_SUCCEEDED, artefact=artefact, steps=journal.steps)

    async def _build(self, order: Order, journal: Journal) -> Artefact:
        limit = self._settings.build_timeout
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await self._choice.build(order, journal)
        except TimeoutError as error:
            raise BuildFailed(
                "BUILD_TIMEOUT",
                f"the build took longer than {limit.total_seconds():.0f} s",
                "require less or smaller packages, or ask the operator to raise "
                "MAYFLY_BUILD_TIMEOUT",
            ) from error
        except (BuildFailed, ClaimLost, StoreUnavailable):
            raise
        except Exception as error:
            log.error("build_broke", build=order.id, exc_info=error)
            raise BuildFailed(
                "INTERNAL",
                f"the builder failed: {type(error).__name__}: {error}",
                "try again, and report it if it persists",
            ) from error

    async def _finish(self, row: Record, outcome: Build, journal: Journal) -> Build | None:
        failure: Failure = outcome.failure
        retry: timedelta | None = retry_after(failure.reason) if failure.reason else None
        ended = await self._builds.finish(
            row["id"],
            row["claim_token"],
            outcome,
            retry,
            journal.first_pending,
            journal.pending(),
        )
        if ended is None:
            raise ClaimLost(row["id"])
        result = build_of(ended)
        self._metrics.ended(result)
        log.info(
            "build_ended",
            build=row["id"],
            runtime=row["runtime"],
            state=Build.State.Name(result.state),
            reason=failure.reason,
        )
        return result

    async def _flush(self, build: str, token: str, journal: Journal, wake: asyncio.Event) -> None:
        """Write events as they come; those of a build that is over at once come with its end."""
        while True:
            await wake.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            wake.clear()
            items = journal.pending()
            if not items:
                continue
            # Not to be cut in the middle: what is written and what is noted belong together.
            writing = asyncio.ensure_future(
                self._builds.add_events(build, token, journal.first_pending, items)
            )
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                with suppress(StoreUnavailable):
                    await writing
                    journal.written(len(items))
                raise
            except StoreUnavailable:
                wake.set()
                continue
            journal.written(len(items))
            self._changes.tell(build)

    async def _clean_up(self, row: Record) -> None:
        """Remove what was made of a build that is not there any more."""
        with suppress(StoreUnavailable):
            known = await self._builds.get(row["id"])
            if known is None or known["uid"] != row["uid"]:
                failed = await self._choice.remove([Made(row["id"], row["uid"], None)])
                for why in failed.values():
                    # Nothing refers to it any more: the sweep finds it.
                    log.warning("artefact_left", build=row["id"], why=why)


async def _remove(paths: Sequence[Path]) -> None:
    left = [path for path in paths if path.exists()]
    if left:
        # It goes on when the build is cancelled meanwhile.
        failed = await asyncio.shield(asyncio.to_thread(remove, left))
        if failed:
            log.warning("workspace_not_removed", failed={str(k): v for k, v in failed.items()})
