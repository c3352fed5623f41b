"""How a row looks from outside: as a function, a route, a deadline, an error for its callers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.build_pb2 import Artefact
from mayfly.v1.function_pb2 import EndReason, Function, Protocol, State
from mayfly.v1.reclaimer_pb2 import Deadline
from mayfly.v1.route_pb2 import Route
from mayfly.v1.source_pb2 import Failure, Stage

from services.deployer.drivers.base import Endpoint
from services.deployer.effective import Defaults, filled, kind_of
from services.deployer.rows import RUNNABLE, FunctionRow, deadline_of


@dataclass(frozen=True)
class Viewpoint:
    """What views need besides the row."""

    public_url: str
    defaults: Defaults

    def url(self, function_id: str) -> str:
        """Where a function answers."""
        return f"{self.public_url}/f/{function_id}"


def timestamp(time: datetime) -> Timestamp:
    """Return `time` as protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def function_of(row: FunctionRow, viewpoint: Viewpoint) -> Function:
    """Return the function as its owner sees it."""
    artefact = Artefact.FromString(row.artefact or row.serving_artefact or b"")
    view = filled(Function.FromString(row.spec), artefact.settings, viewpoint.defaults)
    view.name = row.name
    view.uid = row.uid
    view.ttl.FromTimedelta(row.ttl)
    view.idle_timeout.FromTimedelta(row.idle_timeout or timedelta(0))
    view.state = _state(row)
    view.url = viewpoint.url(row.id)
    view.create_time.CopyFrom(timestamp(row.create_time))
    view.update_time.CopyFrom(timestamp(row.update_time))
    view.expire_time.CopyFrom(timestamp(row.ended_time or row.expire_time))
    if row.last_use_time is not None:
        view.last_use_time.CopyFrom(timestamp(row.last_use_time))
    if row.reclaim_time is not None:
        view.reclaim_time.CopyFrom(timestamp(row.reclaim_time))
    if row.failure:
        view.failure.CopyFrom(Failure.FromString(row.failure))
    view.build = row.serving_build or row.build
    view.revision = row.revision
    view.trace_id = row.trace_id
    view.instances = row.instances
    view.end_reason = _end_reason(row)
    return view


def route_of(row: FunctionRow, defaults: Defaults) -> Route:
    """Return the route of a function that lives.

    IDLE functions are READY here: waking is the driver's business, and no gateway needs to know.
    """
    spec = Function.FromString(row.serving_spec or row.spec)
    artefact = Artefact.FromString(row.serving_artefact or row.artefact or b"")
    full = filled(spec, artefact.settings, defaults)
    endpoint = Endpoint.parse("" if row.state == State.STATE_FAILED else row.endpoint)
    state = State.STATE_READY if row.state in RUNNABLE else row.state
    route = Route(
        function_id=row.id,
        uid=row.uid,
        state=state,  # pyright: ignore[reportArgumentType] - a number of State
        endpoint=endpoint.address,
        endpoints=(endpoint.address, *endpoint.others) if endpoint.others else (),
        host=endpoint.host,
        cold=not endpoint.address and row.state in RUNNABLE,
        expire_time=timestamp(row.expire_time),
        timeout=full.timeout,
        protocol=full.protocol or Protocol.PROTOCOL_HTTP1,
        one_request_per_connection=kind_of(artefact) != "script"
        and row.endpoint.startswith("unix:"),
        traceparent=row.traceparent,
    )
    if row.state == State.STATE_FAILED and row.failure:
        route.failure.CopyFrom(Failure.FromString(row.failure))
    return route


def deadline_message(row: FunctionRow) -> Deadline:
    """Return when a function ends, for the janitor."""
    ended = row.ended_time is not None
    return Deadline(
        name=row.name,
        uid=row.uid,
        expire_time=timestamp(row.ended_time or deadline_of(row)),
        ended=ended,
        traceparent=row.traceparent,
    )


def error_body(failure: Failure) -> bytes:
    """Return the JSON that callers of a failed function get with status 503."""
    stage = Stage.Name(failure.stage).removeprefix("STAGE_").lower()
    error = {
        "code": 503,
        "status": "UNAVAILABLE",
        "reason": failure.reason,
        "message": f"the function failed in the stage {stage}: {failure.message}",
        "fix": failure.fix,
        "stage": stage,
    }
    return json.dumps({"error": error}).encode()


def _state(row: FunctionRow) -> State.ValueType:
    if row.ended_time is None and row.ended:
        return State.STATE_EXPIRED
    return row.state  # pyright: ignore[reportReturnType] - the column holds numbers of State


def _end_reason(row: FunctionRow) -> EndReason.ValueType:
    if row.ended_time is None and row.ended:
        return EndReason.END_REASON_TTL
    return row.end_reason  # pyright: ignore[reportReturnType] - a number of EndReason
