"""What holds for a function: the request, else the script's own table, else the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, ScriptSettings
from mayfly.v1.function_pb2 import Function, Protocol
from mayfly.v1.source_pb2 import Source

from services.deployer.drivers.base import Kind, Limits, Workload

SCRIPT_PORT = 8000
IMAGE_PORT = 8080

_KINDS: dict[int, Kind] = {
    Artefact.KIND_PYTHON_HANDLER: "handler",
    Artefact.KIND_GO_HANDLER: "go_handler",
    Artefact.KIND_SCRIPT: "script",
    Artefact.KIND_IMAGE: "image",
}

_BY_CONTENT: dict[str, Kind] = {"script": "script", "image": "image"}


@dataclass(frozen=True)
class Defaults:
    """What holds where neither the request nor the script says anything."""

    ttl: timedelta
    max_ttl: timedelta
    timeout: timedelta
    memory_bytes: int
    processes: int
    open_files: int
    cpu_seconds: float
    concurrency: int
    max_instances: int
    start_timeout: timedelta
    idle_stop: timedelta


@dataclass(frozen=True)
class Lease:
    """The terms of a lease that a script's table asks for; None: as they are."""

    ttl: timedelta | None
    idle_timeout: timedelta | None


def filled(spec: Function, settings: ScriptSettings, defaults: Defaults) -> Function:
    """Return `spec` with every field set that has a default; the lease's terms are the row's."""
    full = Function()
    full.CopyFrom(spec)
    if not full.HasField("timeout"):
        full.timeout.FromTimedelta(defaults.timeout)
    full.resources.memory_bytes = full.resources.memory_bytes or defaults.memory_bytes
    full.resources.processes = full.resources.processes or defaults.processes
    full.resources.open_files = full.resources.open_files or defaults.open_files
    full.resources.cpu_seconds = full.resources.cpu_seconds or defaults.cpu_seconds
    full.concurrency = full.concurrency or defaults.concurrency
    full.max_instances = full.max_instances or max(defaults.max_instances, full.min_instances)
    full.port = full.port or settings.port
    full.health = full.health or settings.health
    return full


def lease_of(spec: Function, settings: ScriptSettings, max_ttl: timedelta) -> Lease:
    """Return what a script's table says about the lease where the request said nothing."""
    ttl = idle = None
    if settings.HasField("ttl") and not spec.HasField("ttl"):
        ttl = settings.ttl.ToTimedelta()
        ttl = min(ttl, max_ttl) if ttl > timedelta(0) else None
    if settings.HasField("idle_timeout") and not spec.HasField("idle_timeout"):
        idle = settings.idle_timeout.ToTimedelta()
        idle = idle if idle > timedelta(0) else None
    return Lease(ttl, idle)


def kind_before_build(runtime: str, source: Source) -> Kind | None:
    """Return how a source will be started where that is known before its build.

    None: an archive can be either, and its socket is made once the build has said which.
    """
    content = source.WhichOneof("content")
    if content == "handler":
        return "go_handler" if runtime == "go" else "handler"
    return _BY_CONTENT.get(content or "")


def kind_of(artefact: Artefact) -> Kind | None:
    """Return how an artefact is started; None when no driver can."""
    return _KINDS.get(artefact.kind)


def workload_of(
    function_id: str,
    uid: str,
    generation: int,
    spec: Function,
    artefact: Artefact,
    url: str,
    defaults: Defaults,
) -> Workload:
    """Return what the driver runs. Raises `ValueError` for an artefact that it cannot."""
    kind = kind_of(artefact)
    if kind is None:
        raise ValueError(f"no driver here starts {Artefact.Kind.Name(artefact.kind)}")
    full = filled(spec, artefact.settings, defaults)
    return Workload(
        function_id=function_id,
        uid=uid,
        revision=generation,
        kind=kind,
        artefact_dir=Path(artefact.directory) if artefact.directory else None,
        entry=artefact.entry,
        interpreter=Path(artefact.interpreter) if artefact.interpreter else None,
        environment=Path(artefact.environment) if artefact.environment else None,
        env=dict(full.env),
        port=full.port or (SCRIPT_PORT if kind == "script" else IMAGE_PORT),
        health=full.health or None,
        timeout=full.timeout.ToTimedelta().total_seconds(),
        start_timeout=defaults.start_timeout.total_seconds(),
        idle_stop=defaults.idle_stop.total_seconds(),
        concurrency=full.concurrency,
        min_instances=full.min_instances,
        max_instances=full.max_instances,
        url=url,
        limits=Limits(
            memory_bytes=full.resources.memory_bytes,
            processes=full.resources.processes,
            open_files=full.resources.open_files,
            cpu_seconds=full.resources.cpu_seconds,
        ),
        http2=full.protocol == Protocol.PROTOCOL_HTTP2,
        image=artefact.image,
        bundle=artefact.bundle,
        lock=artefact.lock,
        python_version=artefact.python_version,
    )
