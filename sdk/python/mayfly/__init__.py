"""Mayfly: source code to a live URL that ends by itself.

    from mayfly import Client

    with Client("http://127.0.0.1:8080") as mayfly:
        function = mayfly.deploy("hello.py", ttl="10m")
        print(function.url)

`AsyncClient` has the same methods, to be awaited. Every error is a `MayflyError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mayfly.async_client import AsyncClient
    from mayfly.client import Client
    from mayfly.errors import (
        AlreadyExists,
        FunctionEnded,
        FunctionFailed,
        InternalError,
        InvalidRequest,
        MayflyError,
        NotFound,
        PermissionDenied,
        QuotaExceeded,
        Unavailable,
    )
    from mayfly.resources import (
        Event,
        Failure,
        Function,
        JanitorStatus,
        LogLine,
        Receipt,
        Runtime,
        Span,
        SweepFinding,
        SweepSummary,
        Trace,
    )
    from mayfly.source import Source

_WHERE = {
    "AsyncClient": "mayfly.async_client",
    "Client": "mayfly.client",
    "Source": "mayfly.source",
    **dict.fromkeys(
        (
            "AlreadyExists",
            "FunctionEnded",
            "FunctionFailed",
            "InternalError",
            "InvalidRequest",
            "MayflyError",
            "NotFound",
            "PermissionDenied",
            "QuotaExceeded",
            "Unavailable",
        ),
        "mayfly.errors",
    ),
    **dict.fromkeys(
        (
            "Event",
            "Failure",
            "Function",
            "JanitorStatus",
            "LogLine",
            "Receipt",
            "Runtime",
            "Span",
            "SweepFinding",
            "SweepSummary",
            "Trace",
        ),
        "mayfly.resources",
    ),
}

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Client",
    "Event",
    "Failure",
    "Function",
    "FunctionEnded",
    "FunctionFailed",
    "InternalError",
    "InvalidRequest",
    "JanitorStatus",
    "LogLine",
    "MayflyError",
    "NotFound",
    "PermissionDenied",
    "QuotaExceeded",
    "Receipt",
    "Runtime",
    "Source",
    "Span",
    "SweepFinding",
    "SweepSummary",
    "Trace",
    "Unavailable",
]


def __getattr__(name: str) -> Any:
    # Importing gRPC takes a fifth of a second: only who uses a client pays for it.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
