"""What the driver and the supervisor say to each other: JSON lines over a unix socket.

Requests `{"id": n, "method": ..., "params": {...}}` are answered by `{"id": n, "result": ...}` or
`{"id": n, "error": {...}}`; `{"notification": type, ...}` lines come unasked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from services.deployer.drivers import base

MAX_LINE = 16 << 20

Message = dict[str, Any]

_NOTIFICATIONS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        base.InstanceStarted,
        base.InstanceStopped,
        base.BecameIdle,
        base.BecameActive,
        base.LogLine,
        base.SupervisorLost,
    )
}


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def workload_to_json(workload: base.Workload) -> Message:
    values = asdict(workload)
    for name in ("artefact_dir", "interpreter", "environment"):
        values[name] = str(values[name]) if values[name] is not None else None
    values["env"] = dict(workload.env)
    del values["bundle"]  # only a cluster has one
    return values


def workload_from_json(values: Message) -> base.Workload:
    arguments = dict(values)
    for name in ("artefact_dir", "interpreter", "environment"):
        arguments[name] = Path(arguments[name]) if arguments[name] is not None else None
    arguments["limits"] = base.Limits(**arguments["limits"])
    return base.Workload(**arguments)


def resource_to_json(resource: base.Resource) -> Message:
    return asdict(resource)


def resource_from_json(values: Message) -> base.Resource:
    return base.Resource(**values)


def failure_to_json(failure: base.DeployFailed) -> Message:
    return {item.name: getattr(failure, item.name) for item in fields(failure)}


def failure_from_json(values: Message) -> base.DeployFailed:
    return base.DeployFailed(**values)


def notification_to_json(notification: base.Notification) -> Message:
    return {"notification": type(notification).__name__, **asdict(notification)}


def notification_from_json(message: Message) -> base.Notification:
    arguments = dict(message)
    kind = _NOTIFICATIONS[arguments.pop("notification")]
    return kind(**arguments)
