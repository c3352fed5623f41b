"""What is decided by values alone: validation, filters, names, next step, leases, views."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from mayfly.v1.build_pb2 import Artefact, Runtime, ScriptSettings
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import CreateFunctionRequest, Function, State
from mayfly.v1.source_pb2 import Failure, Resources, Stage
from pydantic import ValidationError

from libs.rpc.errors import MayflyError
from services.deployer.config import Settings
from services.deployer.effective import Defaults, filled, lease_of, workload_of
from services.deployer.filters import parse_filter
from services.deployer.names import LABEL, id_of, new_id, page_token, parse_page_token
from services.deployer.next_step import Deploy, Hold, Nothing, Prepare, World, next_step
from services.deployer.rows import FunctionRow, deadline_of
from services.deployer.validation import Bounds, check_create, check_update
from services.deployer.view import Viewpoint, error_body, function_of, route_of

BOUNDS = Bounds(
    max_ttl=timedelta(hours=24),
    max_timeout=timedelta(hours=1),
    max_source_bytes=1000,
    max_env_bytes=200,
    max_instances=8,
    max_memory_bytes=2**30,
    max_processes=100,
    max_open_files=1000,
)
DEFAULTS = Defaults(
    ttl=timedelta(minutes=10),
    max_ttl=timedelta(hours=24),
    timeout=timedelta(seconds=60),
    memory_bytes=2**28,
    processes=64,
    open_files=512,
    cpu_seconds=3600,
    concurrency=16,
    max_instances=4,
    start_timeout=timedelta(seconds=30),
    idle_stop=timedelta(seconds=60),
)
RUNTIMES = {
    "python": Runtime(name="python", available=True, sources=["handler", "script", "archive"]),
    "go": Runtime(name="go", available=False, unavailable_reason="no go on PATH"),
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REASON = ErrorReason


def request(function_id: str = "", request_id: str = "", **fields) -> CreateFunctionRequest:
    fields.setdefault("handler", "def handler(event, ctx): ...")
    if fields["handler"] is None:
        del fields["handler"]
    return CreateFunctionRequest(
        function=Function(**fields), function_id=function_id, request_id=request_id
    )


def row(**changes) -> FunctionRow:
    """A row of a function that was created a minute ago."""
    base = FunctionRow(
        uid="u", id="hello", target="local", request_id=None, runtime="python", labels="{}",
        spec=Function(runtime="python").SerializeToString(), state=State.STATE_PENDING,
        revision=1, generation=1, ready_generation=0, failed_generation=0, build="",
        artefact=None, serving_spec=None, serving_build="", serving_artefact=None,
        hold_due=False, endpoint="", failure=None, instances=0, ttl=timedelta(minutes=10),
        idle_timeout=None, create_time=NOW - timedelta(minutes=1), update_time=NOW,
        expire_time=NOW + timedelta(minutes=9), idle_from=None, last_use_time=None, busy=False,
        ended_time=None, end_reason=0, reclaim_time=None, outcome=None,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        trace_id="0af7651916cd43dd8448eb211c80319c", parent_span_id="", version=1,
        event_sequence=1, log_lines=0, claim_owner=None, claim_until=None, now=NOW,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("asked", "reason", "field"),
    [
        (CreateFunctionRequest(), REASON.ERROR_REASON_INVALID_FIELD, "function"),
        (request(handler=None), REASON.ERROR_REASON_INVALID_SOURCE, "function.handler"),
        (request(handler=""), REASON.ERROR_REASON_INVALID_SOURCE, "function.handler"),
        (request(handler="x" * 1001), REASON.ERROR_REASON_SOURCE_TOO_LARGE, "function.handler"),
        (request(handler="a\0b"), REASON.ERROR_REASON_INVALID_SOURCE, "function.handler"),
        (request("My_Function"), REASON.ERROR_REASON_INVALID_FUNCTION_ID, "function_id"),
        (request("a" * 64), REASON.ERROR_REASON_INVALID_FUNCTION_ID, "function_id"),
        (request("-a"), REASON.ERROR_REASON_INVALID_FUNCTION_ID, "function_id"),
        (request("_hold"), REASON.ERROR_REASON_INVALID_FUNCTION_ID, "function_id"),
        (request(request_id="x" * 129), REASON.ERROR_REASON_INVALID_FIELD, "request_id"),
        (request(runtime="cobol"), REASON.ERROR_REASON_UNKNOWN_RUNTIME, "function.runtime"),
        (request(runtime="go"), REASON.ERROR_REASON_UNKNOWN_RUNTIME, "function.runtime"),
        (
            request(handler=None, image="x:1"),
            REASON.ERROR_REASON_SOURCE_UNSUPPORTED,
            "function.image",
        ),
        (request(ttl=Duration()), REASON.ERROR_REASON_INVALID_TTL, "function.ttl"),
        (request(ttl=Duration(seconds=-5)), REASON.ERROR_REASON_INVALID_TTL, "function.ttl"),
        (request(ttl=Duration(seconds=86401)), REASON.ERROR_REASON_INVALID_TTL, "function.ttl"),
        (
            request(ttl=Duration(seconds=1, nanos=-1)),
            REASON.ERROR_REASON_INVALID_TTL,
            "function.ttl",
        ),
        (
            request(idle_timeout=Duration(seconds=-1)),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.idle_timeout",
        ),
        (request(timeout=Duration()), REASON.ERROR_REASON_INVALID_FIELD, "function.timeout"),
        (request(env={"1A": "x"}), REASON.ERROR_REASON_INVALID_FIELD, "function.env.1A"),
        (request(env={"PORT": "1"}), REASON.ERROR_REASON_INVALID_FIELD, "function.env.PORT"),
        (request(env={"A": "x" * 300}), REASON.ERROR_REASON_INVALID_FIELD, "function.env"),
        (request(env={"A": "\0"}), REASON.ERROR_REASON_INVALID_FIELD, "function.env.A"),
        (request(labels={"a b": "x"}), REASON.ERROR_REASON_INVALID_FIELD, "function.labels.a b"),
        (request(labels={"a": "x" * 64}), REASON.ERROR_REASON_INVALID_FIELD, "function.labels.a"),
        (request(port=80), REASON.ERROR_REASON_INVALID_FIELD, "function.port"),
        (
            request(handler=None, script="x", port=70000),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.port",
        ),
        (
            request(handler=None, script="x", health="up"),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.health",
        ),
        (request(max_instances=9), REASON.ERROR_REASON_INVALID_FIELD, "function.max_instances"),
        (request(min_instances=-1), REASON.ERROR_REASON_INVALID_FIELD, "function.min_instances"),
        (
            request(min_instances=3, max_instances=2),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.min_instances",
        ),
        (request(concurrency=1001), REASON.ERROR_REASON_INVALID_FIELD, "function.concurrency"),
        (
            request(resources=Resources(memory_bytes=1)),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.resources.memory_bytes",
        ),
        (
            request(resources=Resources(processes=101)),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.resources.processes",
        ),
        (
            request(resources=Resources(cpu_seconds=float("nan"))),
            REASON.ERROR_REASON_INVALID_FIELD,
            "function.resources.cpu_seconds",
        ),
    ],
)
def test_bad_requests_are_refused_with_field_and_fix(asked, reason, field) -> None:
    with pytest.raises(MayflyError) as caught:
        check_create(asked, BOUNDS, RUNTIMES)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.fix


def test_good_request_keeps_what_was_asked_and_no_more() -> None:
    asked = request("hello", ttl=Duration(seconds=60), env={"A": "b"}, state=State.STATE_READY)
    wish = check_create(asked, BOUNDS, RUNTIMES)
    assert wish.source.handler == asked.function.handler
    assert (wish.spec.runtime, dict(wish.spec.env)) == ("python", {"A": "b"})
    assert wish.spec.state == State.STATE_UNSPECIFIED
    assert wish.spec.WhichOneof("source") is None


def test_without_the_builder_any_runtime_is_taken() -> None:
    assert check_create(request(runtime="go"), BOUNDS, {}).spec.runtime == "go"


@given(st.text(max_size=70))
def test_ids_are_dns_labels_or_refused(text: str) -> None:
    good = (
        0 < len(text) <= 63
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in text)
        and text[0] != "-"
        and text[-1] != "-"
    )
    assert bool(LABEL.fullmatch(text)) == good
    assert LABEL.fullmatch(new_id())


@pytest.mark.parametrize("name", ["", "hello", "functions/", "functions/A", "functions/a/b"])
def test_names_of_another_shape_are_refused(name: str) -> None:
    with pytest.raises(MayflyError):
        id_of(name)


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_page_tokens_come_back_to_the_microsecond(time: datetime) -> None:
    time = time.replace(tzinfo=UTC)
    assert parse_page_token(page_token(time, "u")) == (time, "u")


@given(st.text(max_size=60))
def test_foreign_page_tokens_are_refused(token: str) -> None:
    if token:
        with pytest.raises(MayflyError):
            parse_page_token(token)


def test_filters() -> None:
    parsed = parse_filter('state=READY AND labels.team="x y" AND runtime!=go AND labels.a!=b')
    assert parsed.states == [State.STATE_READY]
    assert parsed.labels == {"team": "x y"}
    assert parsed.not_runtimes == ["go"]
    assert parsed.not_labels == ['{"a": "b"}']
    assert parse_filter("state=READY AND state=IDLE").nothing
    assert parse_filter("  ") == parse_filter("")


@pytest.mark.parametrize(
    "text", ["state >", "state=NOPE", "size=3", "state=READY OR state=IDLE", "state=READY AND", "="]
)
def test_bad_filters_are_refused(text: str) -> None:
    with pytest.raises(MayflyError) as caught:
        parse_filter(text)
    assert caught.value.reason == REASON.ERROR_REASON_INVALID_FILTER


@given(st.text(max_size=40))
def test_any_filter_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(MayflyError):
        parse_filter(text)


def test_update_takes_the_fields_that_are_named() -> None:
    current = Function(runtime="python", env={"A": "1", "B": "2"}, concurrency=3)
    asked = Function(env={"A": "9"}, concurrency=5, labels={"x": "y"})
    spec, source, redeploy = check_update(current, asked, ["env.A"], BOUNDS, RUNTIMES)
    assert (dict(spec.env), spec.concurrency, source, redeploy) == (
        {"A": "9", "B": "2"}, 3, None, True
    )  # fmt: skip
    spec, _, redeploy = check_update(current, asked, ["labels"], BOUNDS, RUNTIMES)
    assert (dict(spec.labels), redeploy) == ({"x": "y"}, False)
    spec, _, _ = check_update(current, asked, [], BOUNDS, RUNTIMES)
    assert (dict(spec.env), spec.concurrency) == ({"A": "9"}, 5)
    for path in ("ttl", "name", "state", "nope"):
        with pytest.raises(MayflyError):
            check_update(current, asked, [path], BOUNDS, RUNTIMES)


ARTEFACT = Artefact(kind=Artefact.KIND_PYTHON_HANDLER).SerializeToString()
NOTHING_THERE = World(reserved=False, artefact_present=True)
RESERVED = World(reserved=True, artefact_present=True)


@pytest.mark.parametrize(
    ("given_row", "world", "step"),
    [
        (row(), NOTHING_THERE, Prepare(reserve=True, build=True)),
        (row(endpoint="unix:/x"), RESERVED, Prepare(reserve=False, build=True)),
        (row(artefact=ARTEFACT), NOTHING_THERE, Prepare(reserve=True, build=False)),
        (row(artefact=ARTEFACT), RESERVED, Deploy()),
        (row(artefact=ARTEFACT), World(True, False), Prepare(reserve=False, build=True)),
        (row(ready_generation=1), RESERVED, Nothing()),
        (row(failed_generation=1), NOTHING_THERE, Nothing()),
        (row(ready_generation=1, hold_due=True), RESERVED, Hold()),
        (row(generation=2, ready_generation=1, artefact=ARTEFACT), RESERVED, Deploy()),
        (row(expire_time=NOW), NOTHING_THERE, Nothing()),
        (row(ended_time=NOW), NOTHING_THERE, Nothing()),
    ],
)
def test_next_step(given_row: FunctionRow, world: World, step: object) -> None:
    assert next_step(given_row, world) == step


def test_idle_deadline() -> None:
    idle = timedelta(minutes=2)
    unused = row(idle_timeout=idle, idle_from=NOW)
    assert deadline_of(unused) == NOW + idle
    used = dataclasses.replace(unused, last_use_time=NOW + timedelta(minutes=1))
    assert deadline_of(used) == NOW + timedelta(minutes=3)
    assert deadline_of(dataclasses.replace(used, busy=True)) == used.expire_time
    assert deadline_of(row(idle_timeout=idle)) == row().expire_time


def test_request_comes_before_the_script_and_the_script_before_the_defaults() -> None:
    settings = ScriptSettings(port=9000, health="/up", ttl=Duration(seconds=10**6))
    full = filled(Function(port=7000), settings, DEFAULTS)
    assert (full.port, full.health, full.concurrency) == (7000, "/up", 16)
    assert lease_of(Function(), settings, DEFAULTS.max_ttl).ttl == DEFAULTS.max_ttl
    asked = Function(ttl=Duration(seconds=5))
    assert lease_of(asked, settings, DEFAULTS.max_ttl).ttl is None


def test_workload_of_a_script() -> None:
    artefact = Artefact(kind=Artefact.KIND_SCRIPT, directory="/a", entry="script.py")
    spec = Function(env={"A": "b"})
    workload = workload_of("f", "u", 3, spec, artefact, "http://x/f/f", DEFAULTS)
    assert (workload.kind, workload.port, workload.health) == ("script", 8000, None)
    assert (workload.revision, workload.interpreter, dict(workload.env)) == (3, None, {"A": "b"})
    image = Artefact(kind=Artefact.KIND_IMAGE, image="registry/x@sha256:00")
    workload = workload_of("f", "u", 1, Function(), image, "http://x/f/f", DEFAULTS)
    assert (workload.kind, workload.port, workload.artefact_dir) == ("image", 8080, None)
    image = Artefact()
    with pytest.raises(ValueError, match="KIND_UNSPECIFIED"):
        workload_of("f", "u", 3, Function(), image, "http://x", DEFAULTS)


def test_views() -> None:
    viewpoint = Viewpoint("http://localhost:8080", DEFAULTS)
    overdue = function_of(row(expire_time=NOW, state=State.STATE_READY), viewpoint)
    assert (overdue.state, overdue.url) == (State.STATE_EXPIRED, "http://localhost:8080/f/hello")
    failure = Failure(stage=Stage.STAGE_BUILD, reason="SOURCE_SYNTAX", message="m", fix="f")
    failed = row(state=State.STATE_FAILED, failure=failure.SerializeToString(), endpoint="unix:/x")
    route = route_of(failed, DEFAULTS)
    assert (route.endpoint, route.failure.reason) == ("", "SOURCE_SYNTAX")
    assert b'"stage": "build"' in error_body(failure)
    idle = row(state=State.STATE_IDLE, endpoint="unix:/x")
    assert route_of(idle, DEFAULTS).state == State.STATE_READY


def test_settings_read_lengths_and_refuse_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAYFLY_DATABASE_URL", "postgresql://x")
    for text, seconds in (("24h", 86_400), ("1h30m", 5400), ("90", 90), ("0.5s", 0.5),
                          ("PT2M", 120)):  # fmt: skip
        monkeypatch.setenv("MAYFLY_MAX_TTL", text)
        assert Settings().max_ttl.total_seconds() == seconds
    for text in ("soon", "0", "-5s", ""):
        monkeypatch.setenv("MAYFLY_MAX_TTL", text)
        with pytest.raises(ValidationError):
            Settings()
