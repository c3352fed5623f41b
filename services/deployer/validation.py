"""What a request has to be like, decided by values alone. Every refusal names field and fix."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from google.protobuf.duration_pb2 import Duration
from mayfly.v1.build_pb2 import Runtime
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import CreateFunctionRequest, Function, Protocol
from mayfly.v1.source_pb2 import Source

from libs.rpc.errors import MayflyError
from services.deployer.names import LABEL

SOURCES = ("handler", "script", "archive", "image")
# Fields of a function that ask for a new deployment when they change.
DEPLOYED = (
    *SOURCES, "env", "timeout", "resources", "min_instances", "max_instances", "concurrency",
)  # fmt: skip
UPDATABLE = (*DEPLOYED, "labels", "idle_timeout")

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?")
_HEALTH = re.compile(r"/[\x21-\x7e]{0,1023}")
_MAX_LABELS = 64
_MAX_CONCURRENCY = 1000
_MIN_MEMORY = 16 * 1024 * 1024
_MIN_OPEN_FILES = 16
_MAX_REQUEST_ID = 128

_FIELD = ErrorReason.ERROR_REASON_INVALID_FIELD


@dataclass(frozen=True)
class Bounds:
    """What this Mayfly allows."""

    max_ttl: timedelta
    max_timeout: timedelta
    max_source_bytes: int
    max_env_bytes: int
    max_instances: int
    max_memory_bytes: int
    max_processes: int
    max_open_files: int


@dataclass(frozen=True)
class Wish:
    """A request that was found good: what is asked for, without the source, and the source."""

    function_id: str
    spec: Function
    source: Source


def check_create(
    request: CreateFunctionRequest, bounds: Bounds, runtimes: Mapping[str, Runtime]
) -> Wish:
    """Return what a CreateFunction asks for; `function_id` is empty when none was named.

    `runtimes` are the builder's, by name; empty when it could not be asked: the build then finds
    out. Raises `MayflyError`.
    """
    if not request.HasField("function"):
        _refuse("there is no function", "send a function with a source", "function")
    if len(request.request_id) > _MAX_REQUEST_ID or "\0" in request.request_id:
        _refuse(
            f"the request id is longer than {_MAX_REQUEST_ID} characters or has a NUL",
            "use a UUID",
            "request_id",
        )
    if request.function_id:
        _check_id(request.function_id)
    function = request.function
    source = _source(function, bounds)
    spec = wishes_of(function)
    spec.runtime = spec.runtime or "python"
    _check_runtime(spec.runtime, source, runtimes)
    check_spec(spec, bounds, source.WhichOneof("content") or "")
    return Wish(request.function_id, spec, source)


def check_update(
    current: Function,
    asked: Function,
    paths: list[str],
    bounds: Bounds,
    runtimes: Mapping[str, Runtime],
) -> tuple[Function, Source | None, bool]:
    """Return the new spec, the new source (None: unchanged) and whether to deploy anew.

    `current` is the spec as it is kept, `paths` the update mask; empty means what `asked` has
    set. Raises `MayflyError`.
    """
    fields = paths or _set_fields(asked)
    for path in fields:
        if path.partition(".")[0] not in UPDATABLE:
            _refuse(
                f"{path!r} cannot be changed",
                f"change only {', '.join(UPDATABLE)}; for the lease use RenewFunction",
                "update_mask" if paths else path,
            )
    spec = Function()
    spec.CopyFrom(current)
    source: Source | None = None
    for path in fields:
        field = path.partition(".")[0]
        if field in SOURCES:
            source = _source(asked, bounds)
            if source.WhichOneof("content") != field:
                _refuse(f"{field!r} is named but not set", f"set {field}", f"function.{field}")
            continue
        _take(spec, asked, path)
    if source is not None:
        _check_runtime(spec.runtime, source, runtimes)
    check_spec(spec, bounds, source.WhichOneof("content") or "" if source else "")
    redeploy = any(path.partition(".")[0] in DEPLOYED for path in fields)
    return spec, source, redeploy


def check_ttl(ttl: Duration, bounds: Bounds, field: str) -> timedelta:
    """Return a lease's length. Raises `MayflyError` when it is not in (0, max]."""
    reason = ErrorReason.ERROR_REASON_INVALID_TTL
    fix = f"choose more than 0 s and at most {_seconds(bounds.max_ttl)}"
    length = _duration(ttl, field, reason, fix)
    if length <= timedelta(0):
        _refuse(f"a lease of {_seconds(length)} has ended already", fix, field, reason)
    if length > bounds.max_ttl:
        _refuse(f"a lease of {_seconds(length)} is longer than allowed", fix, field, reason)
    return length


def wishes_of(function: Function) -> Function:
    """Return what a caller can ask for of `function`: no output, no source, no name."""
    spec = Function(
        runtime=function.runtime,
        env=function.env,
        labels=function.labels,
        min_instances=function.min_instances,
        max_instances=function.max_instances,
        concurrency=function.concurrency,
        port=function.port,
        health=function.health,
        protocol=function.protocol,
    )
    if function.HasField("ttl"):
        spec.ttl.CopyFrom(function.ttl)
    if function.HasField("idle_timeout"):
        spec.idle_timeout.CopyFrom(function.idle_timeout)
    if function.HasField("timeout"):
        spec.timeout.CopyFrom(function.timeout)
    if function.HasField("resources"):
        spec.resources.CopyFrom(function.resources)
    return spec


def check_spec(spec: Function, bounds: Bounds, source: str) -> None:
    """Check everything but source, id and runtime. Raises `MayflyError`."""
    if spec.HasField("ttl"):
        check_ttl(spec.ttl, bounds, "function.ttl")
    if spec.HasField("idle_timeout"):
        fix = f"choose 0 (never) to {_seconds(bounds.max_ttl)}"
        idle = _duration(spec.idle_timeout, "function.idle_timeout", _FIELD, fix)
        if not timedelta(0) <= idle <= bounds.max_ttl:
            _refuse(f"an idle time of {_seconds(idle)} is out of range", fix,
                    "function.idle_timeout")  # fmt: skip
    if spec.HasField("timeout"):
        fix = f"choose more than 0 s and at most {_seconds(bounds.max_timeout)}"
        timeout = _duration(spec.timeout, "function.timeout", _FIELD, fix)
        if not timedelta(0) < timeout <= bounds.max_timeout:
            _refuse(f"a timeout of {_seconds(timeout)} is out of range", fix, "function.timeout")
    _check_env(spec.env, bounds)
    _check_labels(spec.labels)
    _check_scale(spec, bounds)
    _check_resources(spec, bounds)
    _in_range("function.port", spec.port, 1, 65_535)
    if spec.health and not _HEALTH.fullmatch(spec.health):
        _refuse(
            f"{spec.health[:80]!r} is no path",
            "write a path that begins with / and has no spaces",
            "function.health",
        )
    for field, given in (("port", spec.port), ("health", spec.health)):
        if given and source == "handler":
            _refuse(
                f"a handler has no {field}: the platform listens for it",
                f"leave {field} out, or send the program as a script",
                f"function.{field}",
            )
    if spec.protocol not in Protocol.values():
        _refuse(f"there is no protocol {spec.protocol}", "use HTTP1 or HTTP2", "function.protocol")


def _check_id(function_id: str) -> None:
    if not LABEL.fullmatch(function_id):
        _refuse(
            f"{function_id[:80]!r} is no DNS label",
            "use at most 63 lower-case letters, digits and hyphens, with a letter or digit at "
            "both ends",
            "function_id",
            ErrorReason.ERROR_REASON_INVALID_FUNCTION_ID,
        )


def _source(function: Function, bounds: Bounds) -> Source:
    # Of a oneof only the last one arrives; that there were two is seen by the transcoder.
    content = function.WhichOneof("source")
    value: str | bytes = getattr(function, content) if content else ""
    if content is None or not value:
        _refuse(
            "there is no source" if content is None else f"{content!r} is empty",
            f"set exactly one of {', '.join(SOURCES)}",
            f"function.{content or 'handler'}",
            ErrorReason.ERROR_REASON_INVALID_SOURCE,
        )
    size = len(value.encode()) if isinstance(value, str) else len(value)
    if size > bounds.max_source_bytes:
        _refuse(
            f"the source has {size} bytes, more than {bounds.max_source_bytes}",
            f"send at most {bounds.max_source_bytes} bytes; put data where the code can fetch it",
            f"function.{content}",
            ErrorReason.ERROR_REASON_SOURCE_TOO_LARGE,
        )
    if isinstance(value, str) and "\0" in value:
        _refuse("the source has a NUL character", "send text", f"function.{content}",
                ErrorReason.ERROR_REASON_INVALID_SOURCE)  # fmt: skip
    source = Source()
    setattr(source, content, value)
    return source


def _check_runtime(name: str, source: Source, runtimes: Mapping[str, Runtime]) -> None:
    if not runtimes:
        return
    reason = ErrorReason.ERROR_REASON_UNKNOWN_RUNTIME
    usable = sorted(runtime.name for runtime in runtimes.values() if runtime.available)
    fix = f"use one of {', '.join(usable)}" if usable else "make a runtime available"
    runtime = runtimes.get(name)
    if runtime is None:
        _refuse(f"there is no runtime {name[:80]!r}", fix, "function.runtime", reason)
    if not runtime.available:
        _refuse(
            f"the runtime {name!r} cannot be used here: {runtime.unavailable_reason}",
            fix,
            "function.runtime",
            reason,
        )
    content = source.WhichOneof("content") or ""
    if runtime.sources and content not in runtime.sources:
        _refuse(
            f"the runtime {name!r} takes no {content}",
            f"send one of {', '.join(runtime.sources)}",
            f"function.{content}",
            ErrorReason.ERROR_REASON_SOURCE_UNSUPPORTED,
        )


def _check_env(env: Mapping[str, str], bounds: Bounds) -> None:
    size = 0
    for name, value in env.items():
        field = f"function.env.{name[:80]}"
        if not _ENV_NAME.fullmatch(name):
            _refuse(
                f"{name[:80]!r} is no name of an environment variable",
                "use letters, digits and _, not beginning with a digit",
                field,
            )
        if name.startswith("MAYFLY_") or name == "PORT":
            _refuse(
                f"{name} is set by Mayfly itself",
                "choose another name; the port is the field `port`",
                field,
            )
        if "\0" in value:
            _refuse(f"the value of {name} has a NUL character", "encode it, as base64 say", field)
        size += len(name.encode()) + len(value.encode()) + 2
    if size > bounds.max_env_bytes:
        _refuse(
            f"the environment variables have {size} bytes, more than {bounds.max_env_bytes}",
            "put large values into the source or where the code can fetch them",
            "function.env",
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS:
        _refuse(f"{len(labels)} labels are too many", f"use at most {_MAX_LABELS}",
                "function.labels")  # fmt: skip
    for key, value in labels.items():
        if not _LABEL_NAME.fullmatch(key):
            _refuse(
                f"{key[:80]!r} is no name of a label",
                "use at most 63 letters, digits, and inner _ . / -",
                f"function.labels.{key[:80]}",
            )
        if len(value) > 63 or "\0" in value:
            _refuse(
                f"the value of the label {key!r} is longer than 63 characters or has a NUL",
                "shorten it",
                f"function.labels.{key}",
            )


def _check_scale(spec: Function, bounds: Bounds) -> None:
    _in_range("function.min_instances", spec.min_instances, 0, bounds.max_instances)
    _in_range("function.max_instances", spec.max_instances, 1, bounds.max_instances)
    _in_range("function.concurrency", spec.concurrency, 1, _MAX_CONCURRENCY)
    if spec.max_instances and spec.min_instances > spec.max_instances:
        _refuse(
            f"min_instances {spec.min_instances} is more than max_instances {spec.max_instances}",
            "lower min_instances or raise max_instances",
            "function.min_instances",
        )


def _check_resources(spec: Function, bounds: Bounds) -> None:
    limits = spec.resources
    field = "function.resources"
    _in_range(f"{field}.memory_bytes", limits.memory_bytes, _MIN_MEMORY, bounds.max_memory_bytes)
    _in_range(f"{field}.processes", limits.processes, 1, bounds.max_processes)
    _in_range(f"{field}.open_files", limits.open_files, _MIN_OPEN_FILES, bounds.max_open_files)
    if not math.isfinite(limits.cpu_seconds) or limits.cpu_seconds < 0:
        _refuse(f"{limits.cpu_seconds} is no CPU time", "choose 0 (the default) or more",
                f"{field}.cpu_seconds")  # fmt: skip


def _in_range(field: str, value: int, least: int, most: int) -> None:
    """0 means the default and is always good."""
    if value and not least <= value <= most:
        _refuse(f"{value} is out of range", f"choose {least} to {most}, or 0 for the default",
                field)  # fmt: skip


def _duration(duration: Duration, field: str, reason: ErrorReason.ValueType, fix: str) -> timedelta:
    seconds, nanos = duration.seconds, duration.nanos
    signs_differ = (seconds > 0 > nanos) or (seconds < 0 < nanos)
    # The range of google.protobuf.Duration: about 10,000 years.
    if signs_differ or abs(nanos) > 999_999_999 or abs(seconds) > 315_576_000_000:
        _refuse(f"{seconds} s and {nanos} ns are no duration", fix, field, reason)
    return timedelta(seconds=seconds, microseconds=nanos / 1000)


def _take(spec: Function, asked: Function, path: str) -> None:
    """Copy one field of an update mask; a path inside `env`, `labels` takes one entry."""
    field, _, inner = path.partition(".")
    if field in ("env", "labels"):
        mine: dict[str, str] = getattr(spec, field)
        theirs: dict[str, str] = getattr(asked, field)
        if inner:
            key = inner.strip("`")
            if key in theirs:
                mine[key] = theirs[key]
            else:
                mine.pop(key, None)
        else:
            mine.clear()
            mine.update(theirs)
    elif field == "resources" and inner:
        if inner not in spec.resources.DESCRIPTOR.fields_by_name:
            _refuse(f"there is no field {path!r}", "name a field of resources", "update_mask")
        setattr(spec.resources, inner, getattr(asked.resources, inner))
    elif inner:
        _refuse(f"there is no field {path!r}", "name a field of the function", "update_mask")
    elif field in ("timeout", "idle_timeout", "resources"):
        if asked.HasField(field):
            getattr(spec, field).CopyFrom(getattr(asked, field))
        else:
            spec.ClearField(field)
    else:
        setattr(spec, field, getattr(asked, field))


def _set_fields(asked: Function) -> list[str]:
    """The fields that are set, but for the name and what only Mayfly writes."""
    outputs = {field.name for field in Function.DESCRIPTOR.fields if field.number >= 30}
    named = (descriptor.name for descriptor, _ in asked.ListFields())
    return [name for name in named if name != "name" and name not in outputs]


def _seconds(length: timedelta) -> str:
    return f"{length.total_seconds():g} s"


def _refuse(message: str, fix: str, field: str, reason: ErrorReason.ValueType = _FIELD) -> NoReturn:
    raise MayflyError(reason, message, fix=fix, field=field)
