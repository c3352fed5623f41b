"""The builder, as the deployer uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from mayfly.v1.build_pb2 import (
    Build,
    BuildStep,
    CreateBuildRequest,
    FindLostImagesRequest,
    HoldBuildRequest,
    ListRuntimesRequest,
    ReleaseBuildRequest,
    ReleaseBuildResponse,
    Runtime,
    WatchBuildRequest,
)
from mayfly.v1.build_pb2_grpc import BuildServiceStub
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import LogEvent, StageEvent
from mayfly.v1.source_pb2 import Failure, Source, Stage

from libs.rpc.errors import from_rpc_error
from services.deployer.events import Event, log_event, stage_event, utcnow
from services.deployer.view import timestamp

log = structlog.get_logger()

# What a build without requirements takes, with room; longer ones are worth a stream of their own.
_SHORT_WAIT = Duration(nanos=100_000_000)
_CALL_SECONDS = 40.0
_RUNTIMES_SECONDS = 30.0
_RUNTIMES_AGAIN_SECONDS = 3.0
_RELEASES_AT_ONCE = 256
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)


class BuilderUnavailable(Exception):
    """The builder could not be asked, or broke off; asking again may help."""


@dataclass(frozen=True)
class Order:
    """What is to be built, and for whom."""

    function: str
    uid: str
    runtime: str
    source: Source
    expire_time: datetime


class Builds:
    """Builds, runtimes, holds."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # The stub's types are those of the generated synchronous one; calls are awaited.
        self._stub: Any = BuildServiceStub(channel)
        self._runtimes: dict[str, Runtime] = {}
        self._runtimes_until = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._releasing = asyncio.Semaphore(_RELEASES_AT_ONCE)

    async def runtimes(self) -> Mapping[str, Runtime]:
        """Return the runtimes by name, at most half a minute old; empty when never reached."""
        now = asyncio.get_running_loop().time()
        if now >= self._runtimes_until:
            # Whoever comes meanwhile makes do with what is known.
            self._runtimes_until = now + _RUNTIMES_AGAIN_SECONDS
            asking = self._asking = asyncio.create_task(self._ask_runtimes())
            if not self._runtimes:
                await asyncio.shield(asking)
        elif not self._runtimes and self._asking is not None:
            await asyncio.shield(self._asking)
        return self._runtimes

    async def _ask_runtimes(self) -> None:
        try:
            answer = await self._stub.ListRuntimes(ListRuntimesRequest(), timeout=2)
        except grpc.aio.AioRpcError as error:
            log.info("runtimes_not_known", code=error.code().name)
            return
        self._runtimes = {runtime.name: runtime for runtime in answer.runtimes}
        self._runtimes_until = asyncio.get_running_loop().time() + _RUNTIMES_SECONDS

    async def build(self, order: Order, tell: Callable[[Sequence[Event]], None]) -> Build:
        """Return the ended build; `tell` gets its steps and log lines as they come.

        Raises `BuilderUnavailable`. What the builder refuses comes back as a failed build.
        """
        request = CreateBuildRequest(
            runtime=order.runtime,
            source=order.source,
            function=order.function,
            function_uid=order.uid,
            expire_time=timestamp(order.expire_time),
            wait=_SHORT_WAIT,
        )
        begin = utcnow()
        try:
            answer = await self._stub.CreateBuild(request, timeout=_CALL_SECONDS)
            build: Build = answer.build
            if build.state in (Build.STATE_SUCCEEDED, Build.STATE_FAILED):
                for step in build.steps:
                    tell(_step_events(step, begin, started=True))
                if build.state == Build.STATE_FAILED:
                    tell([log_event(LogEvent.ORIGIN_BUILD, t) for t in build.failure.log_tail])
                return build
            ended = await self._watch(build.name, begin, tell)
            artefact = ended.artefact
            if ended.state != Build.STATE_SUCCEEDED or artefact.directory or artefact.image:
                return ended
            # Events of a build leave out what may be large: its files.
            answer = await self._stub.CreateBuild(request, timeout=_CALL_SECONDS)
            return answer.build if answer.build.state == Build.STATE_SUCCEEDED else ended
        except grpc.aio.AioRpcError as error:
            if error.code() in _TRANSIENT:
                raise _unavailable(error) from error
            return _refused(error)

    async def _watch(
        self, name: str, begin: datetime, tell: Callable[[Sequence[Event]], None]
    ) -> Build:
        after = 0
        tries = 0
        while True:
            try:
                stream = self._stub.WatchBuild(WatchBuildRequest(name=name, after=after))
                async for message in stream:
                    after = message.sequence or after
                    tries = 0
                    kind = message.WhichOneof("kind")
                    if kind == "ended":
                        return message.ended
                    if kind == "log":
                        time = message.time.ToDatetime(tzinfo=utcnow().tzinfo)
                        tell([log_event(LogEvent.ORIGIN_BUILD, message.log, time=time)])
                    elif kind == "step":
                        tell(
                            _step_events(
                                message.step,
                                begin,
                                started=not message.step.HasField("duration"),
                            )
                        )
                raise BuilderUnavailable(f"the stream of {name} ended before the build did")
            except grpc.aio.AioRpcError as error:
                tries += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or tries > 3:
                    raise _unavailable(error) from error
                await asyncio.sleep(0.2 * tries)

    async def hold(self, build: str, uid: str, expire_time: datetime) -> bool:
        """Say that a function needs its build longer; False when the build is not there any more.

        Raises `BuilderUnavailable`.
        """
        request = HoldBuildRequest(name=build, function_uid=uid, expire_time=timestamp(expire_time))
        try:
            await self._stub.HoldBuild(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise _unavailable(error) from error
        return True

    async def lost_images(self, builds: Sequence[str]) -> Sequence[str]:
        """Return which of these builds' images are not in the registry any more; of many, some.

        Raises `BuilderUnavailable`.
        """
        request = FindLostImagesRequest(names=builds)
        try:
            answer = await self._stub.FindLostImages(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        return list(answer.lost)

    async def release(self, uid: str, build: str = "") -> ReleaseBuildResponse:
        """Say that a function needs a build no more; without a name, none at all.

        Raises `BuilderUnavailable`.
        """
        request = ReleaseBuildRequest(name=build, function_uid=uid)
        async with self._releasing:
            try:
                return await self._stub.ReleaseBuild(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise _unavailable(error) from error


def _step_events(step: BuildStep, asked: datetime, *, started: bool) -> list[Event]:
    """The start of a step (where it is news) and, once it has a duration, its end.

    Steps of a build that was there before `asked` are told as of then.
    """
    begin = max(asked, step.start_time.ToDatetime(tzinfo=asked.tzinfo))
    events = [stage_event(step.stage, StageEvent.PROGRESS_STARTED, time=begin)] if started else []
    if step.HasField("duration"):
        duration: timedelta = step.duration.ToTimedelta()
        progress = StageEvent.PROGRESS_FAILED if step.failed else StageEvent.PROGRESS_FINISHED
        events.append(
            stage_event(
                step.stage,
                progress,
                duration=duration,
                detail=step.detail,
                time=min(begin + duration, utcnow()),
            )
        )
    return events


def _unavailable(error: grpc.aio.AioRpcError) -> BuilderUnavailable:
    return BuilderUnavailable(f"{error.code().name}: {error.details()}")


def _refused(error: grpc.aio.AioRpcError) -> Build:
    said = from_rpc_error(error)
    unnamed = said.reason == ErrorReason.ERROR_REASON_UNSPECIFIED
    failure = Failure(
        stage=Stage.STAGE_CHECK,
        reason="INTERNAL" if unnamed else said.reason_name,
        message=said.message,
        fix=said.fix,
    )
    return Build(state=Build.STATE_FAILED, failure=failure)
