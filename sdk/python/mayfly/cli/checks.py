"""What `mayfly doctor` looks at. Each check says what it found and how to put it right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mayfly.client import Client
from mayfly.errors import MayflyError, Unavailable

SERVICES = ("FunctionService", "BuildService", "JanitorService")
_SECONDS = 10.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as `mayfly doctor --json` gives it."""
        return asdict(self)


def checks(client: Client) -> Iterator[Check]:
    """Yield what is found, in the order of dependence; stop where nothing more can be asked."""
    reach = _reach(client)
    yield reach
    if not reach.ok:
        return
    yield _versions(client)
    for service in SERVICES:
        yield _health(client, service)
    yield from _runtimes(client)
    yield _janitor(client)


def _reach(client: Client) -> Check:
    ready = grpc.channel_ready_future(client.channel)
    try:
        ready.result(timeout=3)
    except grpc.FutureTimeoutError:
        ready.cancel()
        return Check(
            "connection",
            False,
            f"nothing answers at {client.url}",
            "start it with `make run`, or say where it is with --url or MAYFLY_URL",
        )
    return Check("connection", True, f"gRPC answers at {client.url}")


def _versions(client: Client) -> Check:
    mine = installed()
    if client.url.startswith("unix:"):
        return Check("version", True, f"client {mine}")
    base = client.url if "://" in client.url else f"http://{client.url}"
    try:
        answer = httpx.get(base, headers={"accept": "application/json"}, timeout=_SECONDS)
        theirs = str(answer.json().get("version", ""))
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        why = str(error) or type(error).__name__
        return Check("version", False, f"client {mine}; {base}: {why}", "is this Mayfly's port?")
    same = mine == theirs
    fix = "" if same else "install the client and the platform from the same release"
    return Check("version", same, f"client {mine}, platform {theirs or 'unknown'}", fix)


def installed() -> str:
    """Return this package's version."""
    try:
        return version("mayfly")
    except PackageNotFoundError:
        return "unknown"


def _health(client: Client, service: str) -> Check:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service=f"mayfly.v1.{service}")
    response: Any = health_pb2.HealthCheckResponse
    try:
        serving = stub.Check(request, timeout=_SECONDS).status == response.SERVING
        detail = "serving" if serving else "not serving"
    except grpc.RpcError as error:
        serving = False
        call: Any = error
        detail = str(call.details() or call.code().name)
    fix = "" if serving else "look at its logs; it starts, or what it depends on is away"
    return Check(service, serving, detail, fix)


def _runtimes(client: Client) -> Iterator[Check]:
    try:
        found = client.runtimes()
    except MayflyError as error:
        yield Check("runtimes", False, error.message, error.fix)
        return
    for runtime in found:
        # A language that is not installed is no fault of the platform, as long as one is.
        usable = runtime.available or runtime.name != "python"
        detail = ", ".join(runtime.versions) or "available"
        if not runtime.available:
            detail = f"cannot be used: {runtime.unavailable_reason}"
        fix = "" if usable else runtime.unavailable_reason
        yield Check(f"runtime {runtime.name}", usable, detail, fix)


def _janitor(client: Client) -> Check:
    try:
        status = client.janitor_status()
    except Unavailable as error:
        return Check("leases", False, error.message, error.fix)
    except MayflyError as error:
        return Check("leases", False, f"{error.reason}: {error.message}", error.fix)
    missing = {"deployer", "builder"} - set(status.owners)
    late = status.overdue > 0 and status.lag.total_seconds() > 5
    detail = f"{status.deadlines} known, {status.overdue} overdue"
    if missing:
        return Check(
            "leases",
            False,
            f"{detail}; not connected: {', '.join(sorted(missing))}",
            "look at that service's logs; leases end at the gateway all the same",
        )
    fix = "look at the janitor's logs for what cannot be removed" if late else ""
    return Check("leases", not late, detail, fix)
