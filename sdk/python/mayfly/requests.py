"""From arguments as people give them to the contracts' requests; pure."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from mayfly import durations
from mayfly.errors import InvalidRequest
from mayfly.source import Source
from mayfly.v1 import function_pb2, source_pb2

Length: TypeAlias = str | int | float | timedelta
SourceLike: TypeAlias = Source | str | os.PathLike[str]


@dataclass(frozen=True)
class Options:
    """What may be said about a function besides its source; unset means Mayfly's default."""

    name: str | None = None
    ttl: Length | None = None
    idle_timeout: Length | None = None
    timeout: Length | None = None
    runtime: str | None = None
    env: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    port: int | None = None
    health: str | None = None
    min_instances: int | None = None
    max_instances: int | None = None
    concurrency: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    cpu_seconds: float | None = None
    # "http1" or "http2".
    protocol: str | None = None


def source_of(source: SourceLike) -> Source:
    """Return `source` itself, what a path holds, or the code that a text of several lines is.

    Raises `InvalidRequest` when it cannot be read.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and "\n" in source:
        return Source.from_text(source)
    try:
        return Source.from_path(source)
    except (OSError, ValueError) as error:
        why = f"{source}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise InvalidRequest(
            why,
            reason="INVALID_SOURCE",
            fix="give a file (.py, .go, .tar.gz, .zip) or a directory",
            field="source",
        ) from error


def create(source: Source, options: Options, request_id: str) -> function_pb2.CreateFunctionRequest:
    """Return the request that deploys. Raises `InvalidRequest`."""
    return function_pb2.CreateFunctionRequest(
        function=_function(source, options),
        function_id=source.name if options.name is None else options.name,
        request_id=request_id or uuid.uuid4().hex,
    )


def update(
    name: str, source: Source | None, options: Options
) -> function_pb2.UpdateFunctionRequest:
    """Return the request that changes what is given and nothing else. Raises `InvalidRequest`."""
    function = _function(source, options)
    function.name = name
    # What a function is written in and how long its lease is cannot be changed by an update.
    paths = [f.name for f, _ in function.ListFields() if f.name not in ("name", "runtime", "ttl")]
    mask = FieldMask(paths=paths)
    return function_pb2.UpdateFunctionRequest(function=function, update_mask=mask)


def _function(source: Source | None, options: Options) -> function_pb2.Function:
    function = function_pb2.Function()
    if source is not None:
        function.runtime = options.runtime or source.runtime
        setattr(function, source.kind, source.content)
    for name in ("ttl", "idle_timeout", "timeout"):
        given: Length | None = getattr(options, name)
        if given is not None:
            getattr(function, name).CopyFrom(length(given, name))
    for name in ("env", "labels"):
        getattr(function, name).update(getattr(options, name) or {})
    for name in ("port", "health", "min_instances", "max_instances", "concurrency"):
        if (value := getattr(options, name)) is not None:
            setattr(function, name, value)
    bounds: dict[str, Any] = {
        name: value
        for name in ("memory_bytes", "processes", "open_files", "cpu_seconds")
        if (value := getattr(options, name)) is not None
    }
    if bounds:
        function.resources.CopyFrom(source_pb2.Resources(**bounds))
    if options.protocol:
        function.protocol = _protocol(options.protocol)
    return function


def length(given: Length, field: str) -> Duration:
    """Return a duration. Raises `InvalidRequest` that names `field`."""
    made = Duration()
    try:
        if isinstance(given, str):
            given = durations.parse(given)
        if not isinstance(given, timedelta):
            given = timedelta(seconds=given)
        made.FromTimedelta(given)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{field}: {error}",
            reason="INVALID_TTL" if field == "ttl" else "INVALID_FIELD",
            fix=f"write it like {durations.EXAMPLES}",
            field=field,
        ) from error
    return made


def function_name(name: str) -> str:
    """Return `functions/{id}` for an id, a name or a URL's last part."""
    return name if name.startswith("functions/") else f"functions/{name}"


def receipt_name(name: str) -> str:
    """Return `receipts/{id}` for an id or a name of a function, build or receipt."""
    return f"receipts/{name.rpartition('/')[2]}"


def env_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read KEY=VALUE lines; # begins a comment line, quotes around a value are taken off.

    Raises `OSError`, and `ValueError` that names the line.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        text = line.strip().removeprefix("export ").strip()
        if not text or text.startswith("#"):
            continue
        key, value = env_pair(text, f"{path}, line {number}")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[key] = value
    return found


def env_pair(text: str, where: str) -> tuple[str, str]:
    """Split KEY=VALUE. Raises `ValueError` that says `where`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{where}: {text!r} is not KEY=VALUE")
    return key.strip(), value.strip()


def _protocol(name: str) -> function_pb2.Protocol.ValueType:
    values: dict[str, function_pb2.Protocol.ValueType] = {
        "http1": function_pb2.PROTOCOL_HTTP1,
        "http2": function_pb2.PROTOCOL_HTTP2,
    }
    if name not in values:
        raise InvalidRequest(f"protocol is {name!r}", fix="give http1 or http2", field="protocol")
    return values[name]
