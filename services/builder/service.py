"""BuildService: requests in, rows and builds out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mayfly.v1.build_pb2 import (
    Build,
    CreateBuildRequest,
    CreateBuildResponse,
    FindLostImagesRequest,
    FindLostImagesResponse,
    GetBuildRequest,
    GetBuildResponse,
    HoldBuildRequest,
    HoldBuildResponse,
    ListBuildsRequest,
    ListBuildsResponse,
    ListRuntimesRequest,
    ListRuntimesResponse,
    ReleaseBuildRequest,
    ReleaseBuildResponse,
    WatchBuildRequest,
    WatchBuildResponse,
)
from mayfly.v1.build_pb2_grpc import BuildServiceServicer
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.source_pb2 import Source

from libs.rpc.errors import MayflyError, reason_value
from libs.store import Record
from libs.telemetry.traceparent import current
from services.builder.backends.base import Kind
from services.builder.builds import Builds, Wanted
from services.builder.changes import Changes
from services.builder.choice import Choice
from services.builder.config import Settings
from services.builder.digest import build_id
from services.builder.failures import BuildFailed, looking
from services.builder.paging import from_token, page_size, to_token
from services.builder.removal import Removal
from services.builder.view import PREFIX, build_of, is_over, timestamp
from services.builder.worker import Worker

NAME = "mayfly.v1.BuildService"
_LONGEST_WAIT = 30.0
# A watcher looks for itself at least this often, whatever it was told.
_LOOK_SECONDS = 2.0


class BuildService(BuildServiceServicer):
    """Creates, shows and releases builds."""

    def __init__(
        self,
        builds: Builds,
        worker: Worker,
        choice: Choice,
        removal: Removal,
        changes: Changes,
        settings: Settings,
        platform: str,
    ) -> None:
        self._builds = builds
        self._worker = worker
        self._choice = choice
        self._removal = removal
        self._changes = changes
        self._max_source = settings.max_source_bytes
        self._platform = platform

    async def CreateBuild(self, request: CreateBuildRequest, context: Any) -> CreateBuildResponse:
        """Create a build, or return the one of the same content."""
        runtime = request.runtime or "python"
        kind, source = _content(request.source)
        await self._refuse(runtime, kind, source)
        wanted = await self._wanted(request, runtime, kind, source)
        source = wanted.source
        token = secrets.token_hex(6)
        row = await self._builds.create(wanted, token, at_once=self._worker.has_room)
        task = None
        if row["claim_token"] == token:
            task = self._worker.start(row, source)
        elif row["state"] == Build.STATE_SUCCEEDED:
            if await self._choice.present(build_of(row).artefact):
                return CreateBuildResponse(build=await self._whole(build_of(row)))
            again = await self._builds.rebuild(row, source, wanted.traceparent, token)
            task = self._worker.start(again, source) if again else None
        wait = min(request.wait.ToTimedelta().total_seconds(), _LONGEST_WAIT)
        settled = await self._settled(wanted.id, task, wait)
        return CreateBuildResponse(build=await self._whole(settled))

    async def GetBuild(self, request: GetBuildRequest, context: Any) -> GetBuildResponse:
        """Return one build."""
        build = _id(request.name)
        row = await self._builds.watch(build, 0, here=True)
        if row is None:
            raise _not_found(request.name)
        return GetBuildResponse(build=build_of(row, row["items"] or ()))

    async def ListBuilds(self, request: ListBuildsRequest, context: Any) -> ListBuildsResponse:
        """List builds, newest first."""
        size = page_size(request.page_size)
        time, build = from_token(request.page_token)
        rows = await self._builds.page(time, build, size + 1)
        token = ""
        if len(rows) > size:
            rows = rows[:size]
            token = to_token(rows[-1]["create_time"], rows[-1]["id"])
        return ListBuildsResponse(builds=map(build_of, rows), next_page_token=token)

    async def WatchBuild(
        self, request: WatchBuildRequest, context: Any
    ) -> AsyncIterator[WatchBuildResponse]:
        """Stream a build's events from the beginning, until it has ended."""
        build, after = _id(request.name), request.after
        with self._changes.expect(build) as changed:
            while True:
                changed.clear()
                row = await self._builds.watch(build, after, here=self._worker.does(build))
                if row is None:
                    raise _not_found(request.name)
                for item in row["items"] or ():
                    event = WatchBuildResponse.FromString(item)
                    after = event.sequence
                    yield event
                if is_over(row):
                    ended = build_of(row)
                    yield WatchBuildResponse(
                        sequence=after + 1, time=timestamp(row["end_time"]), ended=ended
                    )
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await changed.wait()

    async def ListRuntimes(
        self, request: ListRuntimesRequest, context: Any
    ) -> ListRuntimesResponse:
        """List the runtimes, and why one cannot be used."""
        return ListRuntimesResponse(runtimes=await self._choice.runtimes())

    async def HoldBuild(self, request: HoldBuildRequest, context: Any) -> HoldBuildResponse:
        """Say that a function needs a build until then."""
        _need_uid(request.function_uid)
        if not request.HasField("expire_time"):
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                "expire_time is not set",
                fix="say until when the function needs the build",
                field="expire_time",
            )
        until = request.expire_time.ToDatetime(tzinfo=UTC)
        if not await self._builds.hold(_id(request.name), request.function_uid, until):
            raise _not_found(request.name)
        return HoldBuildResponse()

    async def ReleaseBuild(
        self, request: ReleaseBuildRequest, context: Any
    ) -> ReleaseBuildResponse:
        """Say that a function no longer needs a build."""
        _need_uid(request.function_uid)
        build = _id(request.name) if request.name else ""
        removed, kept = await self._removal.release(request.function_uid, build)
        return ReleaseBuildResponse(removed=removed, kept=kept)

    async def FindLostImages(
        self, request: FindLostImagesRequest, context: Any
    ) -> FindLostImagesResponse:
        """Look which builds' images somebody else has removed."""
        made = await self._builds.made([_id(name) for name in request.names])
        # Whoever asks runs what it made once: it failed when it was to be made again.
        failed = {each.uid for each in made if each.artefact is None}
        with looking():
            lost = failed | await self._choice.lost(made)
        return FindLostImagesResponse(lost=[PREFIX + each.id for each in made if each.uid in lost])

    async def _refuse(self, runtime: str, kind: Kind, source: bytes) -> None:
        """Raise `MayflyError` for what cannot be built at all."""
        if len(source) > self._max_source:
            raise MayflyError(
                ErrorReason.ERROR_REASON_SOURCE_TOO_LARGE,
                f"the source has {len(source)} bytes; at most {self._max_source} are allowed",
                fix="make it smaller, or ask the operator to raise MAYFLY_MAX_SOURCE_BYTES",
                field="source",
            )
        if runtime not in ("python", "go"):
            raise MayflyError(
                ErrorReason.ERROR_REASON_UNKNOWN_RUNTIME,
                f"there is no runtime {runtime!r}",
                fix="use one of: go, python",
                field="runtime",
            )
        if not self._choice.supports(runtime, kind):
            raise MayflyError(
                ErrorReason.ERROR_REASON_SOURCE_UNSUPPORTED,
                f"this builder cannot build {kind} sources for {runtime}",
                fix=self._choice.way_out(runtime, kind),
                field=f"source.{kind}",
            )
        if not source:
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_SOURCE,
                f"the {kind} is empty",
                fix="send its content",
                field=f"source.{kind}",
            )

    async def _wanted(
        self, request: CreateBuildRequest, runtime: str, kind: Kind, source: bytes
    ) -> Wanted:
        try:
            source = await self._choice.settled(kind, source)
            fingerprint = await self._choice.fingerprint(runtime, kind)
        except BuildFailed as error:
            field = f"source.{kind}" if error.reason == "INVALID_SOURCE" else "runtime"
            raise MayflyError(
                reason_value(error.reason), error.message, fix=error.fix, field=field
            ) from error
        until: datetime | None = None
        if request.HasField("expire_time"):
            until = request.expire_time.ToDatetime(tzinfo=UTC)
        return Wanted(
            id=build_id(
                runtime=runtime,
                kind=kind,
                source=source,
                platform=self._platform,
                fingerprint=fingerprint,
            ),
            uid=secrets.token_hex(8),
            runtime=runtime,
            kind=kind,
            source=source,
            traceparent=current(),
            function_uid=request.function_uid,
            function=request.function,
            until=until,
        )

    async def _whole(self, build: Build) -> Build:
        """Return a build with its bundle, where it has one: only its creator gets to see it."""
        artefact = build.artefact
        if build.state == Build.STATE_SUCCEEDED and not (artefact.directory or artefact.image):
            bundle, lock = await self._builds.bundle(build.name.removeprefix(PREFIX))
            artefact.bundle, artefact.lock = bundle, lock
        return build

    async def _settled(
        self, build: str, task: asyncio.Task[Build | None] | None, wait: float
    ) -> Build:
        """Return a build when it has ended or `wait` seconds have passed."""
        if task is not None and wait > 0:
            await asyncio.wait([task], timeout=wait)
            if task.done() and not task.cancelled() and (result := task.result()) is not None:
                return result
        deadline = asyncio.get_running_loop().time() + (wait if task is None else 0)
        with self._changes.expect(build) as changed:
            while True:
                changed.clear()
                row = await self._builds.watch(build, 0, here=self._worker.does(build))
                if row is None:
                    raise _not_found(PREFIX + build)
                left = deadline - asyncio.get_running_loop().time()
                if is_over(row) or left <= 0:
                    return _of(row)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                        await changed.wait()


def _of(row: Record) -> Build:
    return build_of(row, row["items"] or ())


def _content(source: Source) -> tuple[Kind, bytes]:
    kind = source.WhichOneof("content")
    if kind is None:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_SOURCE,
            "no source is given",
            fix="set one of handler, script, archive, image",
            field="source",
        )
    content: str | bytes = getattr(source, kind)
    return kind, content.encode() if isinstance(content, str) else content


def _id(name: str) -> str:
    build = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not build or "/" in build:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            f"{name!r} is no build's name",
            fix="use builds/{build}",
            field="name",
        )
    return build


def _need_uid(uid: str) -> None:
    if not uid:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            "function_uid is not set",
            fix="name the function's uid",
            field="function_uid",
        )


def _not_found(name: str) -> MayflyError:
    return MayflyError(
        ErrorReason.ERROR_REASON_NOT_FOUND,
        f"there is no build {name}",
        fix="it may have been reclaimed; create it again",
    )
