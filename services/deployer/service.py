"""FunctionService: requests in, rows and events out."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import (
    CreateFunctionRequest,
    CreateFunctionResponse,
    DeleteFunctionRequest,
    DeleteFunctionResponse,
    EndReason,
    Function,
    GetFunctionRequest,
    GetFunctionResponse,
    GetTraceRequest,
    GetTraceResponse,
    ListFunctionsRequest,
    ListFunctionsResponse,
    RenewFunctionRequest,
    RenewFunctionResponse,
    State,
    TailLogsRequest,
    TailLogsResponse,
    UpdateFunctionRequest,
    UpdateFunctionResponse,
    WatchFunctionRequest,
    WatchFunctionResponse,
)
from mayfly.v1.function_pb2_grpc import FunctionServiceServicer
from mayfly.v1.source_pb2 import Failure, Source
from opentelemetry.trace import Tracer

from libs.rpc.errors import MayflyError
from libs.store import Store, StoreUnavailable, UniqueViolation
from libs.telemetry import traceparent
from services.deployer import events
from services.deployer.builds import Builds
from services.deployer.catalog import Catalog
from services.deployer.filters import Filter, parse_filter
from services.deployer.lookup import Lookup
from services.deployer.names import id_of, new_id, new_uid, page_token, parse_page_token
from services.deployer.rows import FunctionRow, row_of
from services.deployer.spans import Root, begin_root, span_of
from services.deployer.traces import Traces
from services.deployer.validation import Bounds, Wish, check_create, check_ttl, check_update
from services.deployer.view import Viewpoint, function_of
from services.deployer.wakeups import Wakeups

_ID_CONSTRAINT = "functions_live_id"
_MADE_UP_TRIES = 5
_UPDATE_TRIES = 10
_PAGE, _MAX_PAGE = 50, 1000

_P = ParamSpec("_P")
_Response = TypeVar("_Response")
_Method = Callable[Concatenate["FunctionService", _P], Coroutine[Any, Any, _Response]]
_PENDING = events.state_event(State.STATE_PENDING).payload
_EXPIRED = events.state_event(State.STATE_EXPIRED, EndReason.END_REASON_TTL).payload
_DELETED = events.state_event(State.STATE_EXPIRED, EndReason.END_REASON_DELETED).payload


@dataclass(frozen=True)
class Rules:
    """What holds for all functions of this replica."""

    replica: str
    target: str
    claim: timedelta
    default_ttl: timedelta
    max_functions: int
    bounds: Bounds
    idle_floor: Callable[[], datetime]


def _to_its_end(method: _Method[_P, _Response]) -> _Method[_P, _Response]:
    """Let a method end even where its caller goes away.

    A call that is given up is cancelled, and a row that was written is nothing without its
    wake-ups: its route would stay, its work would wait until the claim has run out.
    """

    @functools.wraps(method)
    async def call(self: FunctionService, *args: _P.args, **kwargs: _P.kwargs) -> _Response:
        task = asyncio.create_task(method(self, *args, **kwargs))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return await asyncio.shield(task)

    return call


class FunctionService(FunctionServiceServicer):
    """Serves functions' owners."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        lookup: Lookup,
        builds: Builds,
        wakeups: Wakeups,
        traces: Traces,
        tracer: Tracer,
        viewpoint: Viewpoint,
        rules: Rules,
        adopt: Callable[[FunctionRow, Source | None], None],
        look: Callable[[], None],
        routes_taken: Callable[[], Awaitable[str]],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._lookup = lookup
        self._builds = builds
        self._wakeups = wakeups
        self._traces = traces
        self._tracer = tracer
        self._viewpoint = viewpoint
        self._rules = rules
        self._adopt = adopt
        self._look = look
        self._routes_taken = routes_taken
        self.running: set[asyncio.Task[Any]] = set()
        """Calls that change something and are not done, whether or not their callers wait."""

    @_to_its_end
    async def CreateFunction(
        self, request: CreateFunctionRequest, context: Any
    ) -> CreateFunctionResponse:
        """See `FunctionService.CreateFunction`."""
        wish = check_create(request, self._rules.bounds, await self._builds.runtimes())
        if len(self._catalog.entries) >= self._rules.max_functions:
            raise MayflyError(
                ErrorReason.ERROR_REASON_QUOTA_EXCEEDED,
                f"{self._rules.max_functions} functions live already",
                fix="delete some, or wait until leases end",
            )
        row, created = await self._create(wish, request.request_id)
        if created:
            self._catalog.update([row])
            self._adopt(row, wish.source)
        return CreateFunctionResponse(function=self._view(row))

    async def GetFunction(self, request: GetFunctionRequest, context: Any) -> GetFunctionResponse:
        """See `FunctionService.GetFunction`."""
        row = await self._lookup.newest(id_of(request.name))
        return GetFunctionResponse(function=self._view(row))

    async def ListFunctions(
        self, request: ListFunctionsRequest, context: Any
    ) -> ListFunctionsResponse:
        """See `FunctionService.ListFunctions`."""
        wanted = parse_filter(request.filter)
        before = parse_page_token(request.page_token)
        if request.page_size < 0:
            _refuse("page_size", f"a page of {request.page_size}", "choose 0 to 1000")
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        rows = await self._list(wanted, before, size + 1, show_ended=request.show_ended)
        token = page_token(rows[size - 1].create_time, rows[size - 1].uid) if rows[size:] else ""
        return ListFunctionsResponse(
            functions=[self._view(row) for row in rows[:size]], next_page_token=token
        )

    @_to_its_end
    async def UpdateFunction(
        self, request: UpdateFunctionRequest, context: Any
    ) -> UpdateFunctionResponse:
        """See `FunctionService.UpdateFunction`."""
        function_id = id_of(request.function.name, "function.name")
        runtimes = await self._builds.runtimes()
        for _ in range(_UPDATE_TRIES):
            row = await self._lookup.newest(function_id)
            if row.ended:
                raise _ended(row)
            spec, source, redeploy = check_update(
                Function.FromString(row.spec),
                request.function,
                list(request.update_mask.paths),
                self._rules.bounds,
                runtimes,
            )
            updated = await self._update(row, spec, source, redeploy=redeploy)
            if updated is not None:
                self._catalog.update([updated])
                self._wakeups.wake([updated.uid])
                if redeploy:
                    self._adopt(updated, source)
                return UpdateFunctionResponse(function=self._view(updated))
        raise MayflyError(
            ErrorReason.ERROR_REASON_UNAVAILABLE,
            f"functions/{function_id} changes too fast to be updated",
            fix="try again",
        )

    @_to_its_end
    async def DeleteFunction(
        self, request: DeleteFunctionRequest, context: Any
    ) -> DeleteFunctionResponse:
        """See `FunctionService.DeleteFunction`."""
        row = await self._lookup.newest(id_of(request.name))
        if row.ended_time is None:
            row = await self._end(row, delete=True) or await self._lookup.newest(row.id)
        # Also where another call has ended it: that one may not have come this far yet, and this
        # replica may not have heard of it.
        self._catalog.update([row])
        await self._routes_taken()
        return DeleteFunctionResponse(function=self._view(row))

    @_to_its_end
    async def RenewFunction(
        self, request: RenewFunctionRequest, context: Any
    ) -> RenewFunctionResponse:
        """See `FunctionService.RenewFunction`."""
        ttl = None
        if request.HasField("ttl"):
            ttl = check_ttl(request.ttl, self._rules.bounds, "ttl")
        row = await self._lookup.newest(id_of(request.name))
        renewed = await self._row(
            "renew_function",
            uid=row.uid,
            ttl=ttl,
            floor=self._rules.idle_floor(),
            replica=self._rules.replica,
        )
        if renewed is None:
            raise _ended(await self._lookup.newest(row.id))
        self._catalog.update([renewed])
        self._wakeups.wake([renewed.uid])
        self._look()
        return RenewFunctionResponse(function=self._view(renewed))

    async def WatchFunction(
        self, request: WatchFunctionRequest, context: Any
    ) -> AsyncIterator[WatchFunctionResponse]:
        """See `FunctionService.WatchFunction`."""
        if request.after < 0:
            _refuse("after", f"event {request.after}", "use the last sequence seen, or 0")
        row = await self._lookup.newest(id_of(request.name))
        stream = events.watch(
            self._store,
            self._wakeups,
            row.uid,
            request.after,
            until_settled=request.until_settled,
        )
        await _begin(context)
        try:
            async for event in stream:
                yield WatchFunctionResponse(event=event)
        except (StoreUnavailable, MayflyError) as error:
            yield WatchFunctionResponse(
                error=Failure(
                    reason="UNAVAILABLE",
                    message=str(error),
                    fix="watch again after the last sequence number seen",
                )
            )

    async def TailLogs(
        self, request: TailLogsRequest, context: Any
    ) -> AsyncIterator[TailLogsResponse]:
        """See `FunctionService.TailLogs`."""
        if request.tail < 0:
            _refuse("tail", f"{request.tail} lines", "choose 0 (100 lines) or more")
        row = await self._lookup.newest(id_of(request.name))
        stream = events.tail_logs(
            self._store, self._wakeups, row.uid, request.tail, follow=request.follow
        )
        await _begin(context)
        async for line in stream:
            yield line

    async def GetTrace(self, request: GetTraceRequest, context: Any) -> GetTraceResponse:
        """See `FunctionService.GetTrace`."""
        row = await self._lookup.newest(id_of(request.name))
        return GetTraceResponse(trace_id=row.trace_id, spans=await self._traces.spans_of(row))

    async def _create(self, wish: Wish, request_id: str) -> tuple[FunctionRow, bool]:
        """Return the row of a wish and whether it is new."""
        root = begin_root(self._tracer)
        function_id = wish.function_id or new_id()
        uid = new_uid()
        with span_of(self._tracer, root.traceparent, "create", function_id, uid):
            for attempt in range(_MADE_UP_TRIES):
                try:
                    return await self._insert(wish, function_id, uid, request_id, root), True
                except UniqueViolation as taken:
                    # Ours, when the answer to a first try was lost with its connection.
                    if mine := await self._lookup.by_uids([uid]):
                        return mine[0], True
                    if request_id and (row := await self._by_request(request_id)) is not None:
                        return row, False
                    if taken.constraint != _ID_CONSTRAINT:
                        continue
                    if not wish.function_id:
                        function_id = new_id()
                    elif attempt or not await self._end_overdue(function_id):
                        break
        raise MayflyError(
            ErrorReason.ERROR_REASON_FUNCTION_EXISTS,
            f"functions/{function_id} exists",
            fix="choose another id, delete it first, or change it by UpdateFunction",
            field="function_id",
        )

    async def _row(self, query: str, **parameters: Any) -> FunctionRow | None:
        """Run a statement that may be repeated and returns a row; again where PostgreSQL left."""

        async def run() -> FunctionRow | None:
            async with self._store.connection() as connection:
                record = await getattr(self._store.queries, query)(connection, **parameters)
            return row_of(record) if record else None

        return await self._store.retrying(run)

    async def _insert(
        self, wish: Wish, function_id: str, uid: str, request_id: str, root: Root
    ) -> FunctionRow:
        spec = wish.spec
        ttl = spec.ttl.ToTimedelta() if spec.HasField("ttl") else self._rules.default_ttl
        row = await self._row(
            "create_function",
            uid=uid,
            id=function_id,
            target=self._rules.target,
            request_id=request_id or None,
            runtime=spec.runtime,
            labels=json.dumps(dict(spec.labels)),
            spec=spec.SerializeToString(),
            source=wish.source.SerializeToString(),
            ttl=ttl,
            idle_timeout=_idle_timeout(spec),
            traceparent=root.traceparent,
            trace_id=traceparent.trace_id_of(root.traceparent),
            parent_span_id=root.parent_span_id,
            event=_PENDING,
            owner=self._rules.replica,
            claim=self._rules.claim,
        )
        assert row is not None  # an insert returns its row or raises
        return row

    async def _by_request(self, request_id: str) -> FunctionRow | None:
        return await self._row("function_by_request", request_id=request_id)

    async def _end_overdue(self, function_id: str) -> bool:
        """End the function of an id if its lease has run out; an id is free from then on."""
        row = await self._lookup.newest(function_id)
        return row.ended_time is not None or await self._end(row, delete=False) is not None

    async def _end(self, row: FunctionRow, *, delete: bool) -> FunctionRow | None:
        ended = await self._row(
            "end_function",
            uid=row.uid,
            delete=delete,
            expired=_EXPIRED,
            deleted=_DELETED,
            replica=self._rules.replica,
        )
        if ended is None:
            return None
        self._catalog.update([ended])
        self._wakeups.wake([ended.uid])
        return ended

    async def _update(
        self, row: FunctionRow, spec: Function, source: Source | None, *, redeploy: bool
    ) -> FunctionRow | None:
        return await self._row(
            "update_function",
            uid=row.uid,
            version=row.version,
            floor=self._rules.idle_floor(),
            spec=spec.SerializeToString(),
            labels=json.dumps(dict(spec.labels)),
            runtime=spec.runtime,
            idle_timeout=_idle_timeout(spec) if spec.HasField("idle_timeout") else row.idle_timeout,
            source=source.SerializeToString() if source else None,
            redeploy=redeploy,
            owner=self._rules.replica,
            claim=self._rules.claim,
            replica=self._rules.replica,
        )

    async def _list(
        self, wanted: Filter, before: tuple[datetime, str] | None, count: int, *, show_ended: bool
    ) -> list[FunctionRow]:
        if wanted.nothing:
            return []
        async with self._store.connection() as connection:
            records = self._store.queries.list_functions(
                connection,
                show_ended=show_ended,
                before_time=before[0] if before else None,
                before_uid=before[1] if before else None,
                states=wanted.states,
                not_states=wanted.not_states,
                runtimes=wanted.runtimes,
                not_runtimes=wanted.not_runtimes,
                labels=json.dumps(wanted.labels),
                not_labels=wanted.not_labels,
                count=count,
            )
            return [row_of(record) async for record in records]

    def _view(self, row: FunctionRow) -> Function:
        return function_of(row, self._viewpoint)


def _idle_timeout(spec: Function) -> timedelta | None:
    return (spec.idle_timeout.ToTimedelta() or None) if spec.HasField("idle_timeout") else None


async def _begin(context: Any) -> None:
    """Let an HTTP client see that its stream is open, however long the first message takes.

    Not before the request is known to be good: an error after the headers is lost on HTTP/1.1.
    """
    await context.send_initial_metadata(())


def _ended(row: FunctionRow) -> MayflyError:
    return MayflyError(
        ErrorReason.ERROR_REASON_FUNCTION_ENDED,
        f"the lease of {row.name} has ended",
        fix="create it again",
    )


def _refuse(field: str, what: str, fix: str) -> NoReturn:
    raise MayflyError(
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        f"{what} cannot be had",
        fix=fix,
        field=field,
    )
