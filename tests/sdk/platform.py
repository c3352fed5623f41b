"""The three public services over real gRPC, with a dictionary for a world."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1 import (
    build_pb2,
    build_pb2_grpc,
    function_pb2,
    function_pb2_grpc,
    janitor_pb2,
    janitor_pb2_grpc,
    source_pb2,
)
from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError
from libs.rpc.server import Server

FUNCTIONS = "mayfly.v1.FunctionService"
BUILDS = "mayfly.v1.BuildService"
JANITOR = "mayfly.v1.JanitorService"

Event = function_pb2.FunctionEvent
TRACE = "0af7651916cd43dd8448eb211c80319c"


def seconds(amount: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(amount * 1e9))
    return made


def at(offset: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(time.time_ns() + int(offset * 1e9))
    return made


def stage(which: source_pb2.Stage.ValueType, took: float | None, detail: str = "") -> Event:
    started = function_pb2.StageEvent.PROGRESS_STARTED
    finished = function_pb2.StageEvent.PROGRESS_FINISHED
    event = Event()
    event.stage.stage = which
    event.stage.progress = started if took is None else finished
    event.stage.detail = detail
    if took is not None:
        event.stage.duration.CopyFrom(seconds(took))
    return event


def log(text: str, origin: str = "BUILD") -> Event:
    event = Event()
    event.log.text = text
    event.log.origin = function_pb2.LogEvent.Origin.Value(f"ORIGIN_{origin}")
    return event


def state(which: function_pb2.State.ValueType) -> Event:
    event = Event()
    event.state.state = which
    return event


FAILURE = source_pb2.Failure(
    stage=source_pb2.STAGE_BUILD,
    reason="SOURCE_SYNTAX",
    message="'(' was never closed",
    fix="close the parenthesis and deploy again",
    line=3,
    column=12,
    source_line="    return (1 + 2",
)


class FakePlatform(
    function_pb2_grpc.FunctionServiceServicer,
    build_pb2_grpc.BuildServiceServicer,
    janitor_pb2_grpc.JanitorServiceServicer,
):
    """Answers as Mayfly does. What contains the word "broken" does not build."""

    def __init__(self) -> None:
        self.functions: dict[str, function_pb2.Function] = {}
        self.events: dict[str, list[Event]] = {}
        self.requests: list[Any] = []
        self.receipts: dict[str, janitor_pb2.Receipt] = {}
        self.findings: list[janitor_pb2.SweepFinding] = []
        self.break_streams = 0  # streams that break after two messages
        self.unavailable_reports = 0  # streams that say so in their last message
        self.settles = asyncio.Event()
        self.settles.set()

    async def CreateFunction(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if not request.function.WhichOneof("source"):
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_SOURCE, "no source", fix="give one", field="source"
            )
        if request.function.ttl.ToSeconds() > 86400:
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_TTL,
                "ttl is longer than 24h",
                fix="give at most 24h",
                field="function.ttl",
            )
        name = f"functions/{request.function_id or 'made-up'}"
        if name in self.functions:
            raise MayflyError(
                ErrorReason.ERROR_REASON_FUNCTION_EXISTS,
                f"{name} exists",
                fix="choose another name, or change it with --update",
            )
        function = self._put(name, request.function)
        return function_pb2.CreateFunctionResponse(function=function)

    def _put(self, name: str, asked: function_pb2.Function) -> function_pb2.Function:
        function = function_pb2.Function()
        function.CopyFrom(asked)
        broken = "broken" in (asked.handler or asked.script)
        function.name, function.uid, function.trace_id = name, "a" * 16, TRACE
        function.ClearField("source")
        function.url = f"http://localhost:8080/f/{name.removeprefix('functions/')}"
        ttl = asked.ttl.ToNanoseconds() / 1e9 or 600
        function.create_time.CopyFrom(at(0))
        function.expire_time.CopyFrom(at(ttl))
        function.state = function_pb2.STATE_FAILED if broken else function_pb2.STATE_READY
        events = [stage(source_pb2.STAGE_CHECK, None), stage(source_pb2.STAGE_CHECK, 0.001)]
        events.append(stage(source_pb2.STAGE_BUILD, None))
        if broken:
            function.failure.CopyFrom(FAILURE)
            failed = Event()
            failed.failure.CopyFrom(FAILURE)
            events += [failed, state(function_pb2.STATE_FAILED)]
        else:
            events += [
                log("Resolved 3 packages in 12ms"),
                stage(source_pb2.STAGE_BUILD, 0.003, "environment 8c1f2a"),
                stage(source_pb2.STAGE_DEPLOY, 0.004, "process, 1.3 MiB"),
                stage(source_pb2.STAGE_ROUTE, 0.006),
                state(function_pb2.STATE_READY),
            ]
        for sequence, event in enumerate(events, start=1):
            event.sequence = sequence
            event.time.CopyFrom(at(0))
        self.functions[name], self.events[name] = function, events
        return function

    def _find(self, name: str) -> function_pb2.Function:
        if name not in self.functions:
            raise MayflyError(
                ErrorReason.ERROR_REASON_NOT_FOUND, f"{name} does not exist", fix="see mayfly list"
            )
        return self.functions[name]

    async def GetFunction(self, request: Any, context: Any) -> Any:
        return function_pb2.GetFunctionResponse(function=self._find(request.name))

    async def ListFunctions(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        found = list(self.functions.values())
        start = int(request.page_token or 0)
        size = min(request.page_size, 2)
        rest = start + size < len(found)
        return function_pb2.ListFunctionsResponse(
            functions=found[start : start + size],
            next_page_token=str(start + size) if rest else "",
        )

    async def UpdateFunction(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self._find(request.function.name)
        function = self._put(request.function.name, request.function)
        function.revision = 2
        return function_pb2.UpdateFunctionResponse(function=function)

    async def DeleteFunction(self, request: Any, context: Any) -> Any:
        function = self._find(request.name)
        function.state = function_pb2.STATE_EXPIRED
        function.end_reason = function_pb2.END_REASON_DELETED
        return function_pb2.DeleteFunctionResponse(function=function)

    async def RenewFunction(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        function = self._find(request.name)
        if function.state == function_pb2.STATE_EXPIRED:
            raise MayflyError(
                ErrorReason.ERROR_REASON_FUNCTION_ENDED, "its lease has ended", fix="deploy again"
            )
        function.expire_time.CopyFrom(at(request.ttl.ToNanoseconds() / 1e9 or 600))
        return function_pb2.RenewFunctionResponse(function=function)

    async def WatchFunction(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self._find(request.name)
        sent = 0
        for event in self.events[request.name]:
            if event.sequence <= request.after:
                continue
            if sent == 2 and self.break_streams:
                self.break_streams -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if sent == 2 and self.unavailable_reports:
                self.unavailable_reports -= 1
                yield function_pb2.WatchFunctionResponse(
                    error=source_pb2.Failure(reason="UNAVAILABLE", message="going away")
                )
                return
            sent += 1
            yield function_pb2.WatchFunctionResponse(event=event)
        await self.settles.wait()

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self._find(request.name)
        lines = [event for event in self.events[request.name] if event.HasField("log")]
        for event in [*lines, log("hello from the function", "STDOUT")]:
            event.sequence = event.sequence or 99
            yield function_pb2.TailLogsResponse(log=event.log, time=at(0), sequence=event.sequence)
            if self.break_streams:
                self.break_streams -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async def GetTrace(self, request: Any, context: Any) -> Any:
        self._find(request.name)
        spans = []
        for number, (name, parent, service, start, length) in enumerate(
            [
                ("function", "", "deployer", 0, 600.1),
                ("build", "0", "builder", 0.002, 0.4),
                ("deploy", "0", "deployer", 0.403, 0.02),
                ("expire", "0", "janitor", 600, 0.1),
            ]
        ):
            span = function_pb2.Span(
                span_id=str(number), parent_span_id=parent, name=name, service=service
            )
            span.start_time.FromNanoseconds(int((1_700_000_000 + start) * 1e9))
            span.end_time.FromNanoseconds(int((1_700_000_000 + start + length) * 1e9))
            spans.append(span)
        return function_pb2.GetTraceResponse(trace_id=TRACE, spans=spans)

    async def GetReceipt(self, request: Any, context: Any) -> Any:
        if request.name not in self.receipts:
            raise MayflyError(ErrorReason.ERROR_REASON_NOT_FOUND, "no receipt", fix="wait")
        return janitor_pb2.GetReceiptResponse(receipt=self.receipts[request.name])

    async def ListReceipts(self, request: Any, context: Any) -> Any:
        return janitor_pb2.ListReceiptsResponse(receipts=list(self.receipts.values()))

    async def Sweep(self, request: Any, context: Any) -> AsyncIterator[Any]:
        removed = 0
        for finding in self.findings:
            finding.removed = not request.dry_run and not finding.error
            removed += finding.removed
            yield janitor_pb2.SweepResponse(finding=finding)
        yield janitor_pb2.SweepResponse(
            summary=janitor_pb2.SweepSummary(
                found=len(self.findings), removed=removed, looked_at=["deployer: processes (212)"]
            )
        )

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return janitor_pb2.GetStatusResponse(deadlines=3, owners=["deployer", "builder"])

    async def ListRuntimes(self, request: Any, context: Any) -> Any:
        return build_pb2.ListRuntimesResponse(
            runtimes=[
                build_pb2.Runtime(name="go", unavailable_reason="no `go` on PATH; install Go 1.22"),
                build_pb2.Runtime(
                    name="python",
                    available=True,
                    versions=["3.11.2"],
                    sources=["handler", "script"],
                    example="def handler(event, ctx):\n    return 1\n",
                ),
            ]
        )


def server(platform: FakePlatform, address: str = "127.0.0.1:0") -> Server:
    """Return a server of it, not started."""
    made = Server(address, [FUNCTIONS, BUILDS, JANITOR])
    made.add(function_pb2_grpc.add_FunctionServiceServicer_to_server, platform)
    made.add(build_pb2_grpc.add_BuildServiceServicer_to_server, platform)
    made.add(janitor_pb2_grpc.add_JanitorServiceServicer_to_server, platform)
    return made
