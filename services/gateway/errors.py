"""Errors that the gateway itself answers, in their two JSON forms.

Functions' callers get `{"error": {...}}`; callers of /v1 get `google.rpc.Status` with an
`ErrorInfo`, as https://google.aip.dev/193 has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from google.rpc import code_pb2

DOMAIN = "mayfly"


@dataclass(frozen=True)
class Problem:
    """One failure: HTTP status, gRPC status name, reason, and what helps."""

    http: int
    status: str
    reason: str
    message: str
    fix: str = ""
    stage: str = ""

    @property
    def code(self) -> int:
        """The number of the gRPC status."""
        return code_pb2.Code.Value(self.status)


NOT_FOUND = Problem(
    404,
    "NOT_FOUND",
    "NOT_FOUND",
    "there is no such function",
    "check the name; `mayfly list` shows the functions that live",
)
ENDED = Problem(
    404,
    "NOT_FOUND",
    "FUNCTION_ENDED",
    "the function's lease has ended",
    "deploy it again, and renew it before its deadline",
)
NOT_READY_IN_TIME = Problem(
    504,
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
    "the function was not ready within the time that a request may wait",
    "see `mayfly logs` for how far it is, and try again",
)
NO_RESPONSE_IN_TIME = Problem(
    504,
    "DEADLINE_EXCEEDED",
    "FUNCTION_TIMEOUT",
    "the function did not begin its response within its `timeout`",
    "make it answer sooner, or create it with a longer `timeout`",
)
BROKE_OFF = Problem(
    502,
    "UNAVAILABLE",
    "FUNCTION_BROKE_OFF",
    "the function's instance closed the connection before it answered",
    "see `mayfly logs` for why the instance ended",
)
UNREACHABLE = Problem(
    503,
    "UNAVAILABLE",
    "UNAVAILABLE",
    "the function's instances take no connections at the moment",
    "try again in a moment",
)
CONTROL_AWAY = Problem(
    503,
    "UNAVAILABLE",
    "UNAVAILABLE",
    "the deployer cannot be asked at the moment",
    "try again in a moment",
)
NO_GRPC = Problem(
    501,
    "UNIMPLEMENTED",
    "UNAVAILABLE",
    "the function does not speak gRPC",
    "create it with `protocol` PROTOCOL_HTTP2",
)
BAD_REQUEST = Problem(
    400,
    "INVALID_ARGUMENT",
    "INVALID_FIELD",
    "the request is malformed",
    "send well-formed HTTP/1.1 or HTTP/2",
)
NO_SUCH_PAGE = Problem(
    404,
    "NOT_FOUND",
    "NOT_FOUND",
    "there is nothing here",
    "functions are at /f/{function}/, the API at /v1/ and its description at /openapi.json",
)


def body(problem: Problem) -> dict[str, Any]:
    """Return what a function's caller is told."""
    error: dict[str, Any] = {
        "code": problem.http,
        "status": problem.status,
        "reason": problem.reason,
        "message": problem.message,
        "fix": problem.fix,
    }
    if problem.stage:
        error["stage"] = problem.stage
    return {"error": error}


def status_body(problem: Problem, field: str = "") -> dict[str, Any]:
    """Return `google.rpc.Status` as JSON, for callers of /v1."""
    metadata = {"fix": problem.fix} | ({"field": field} if field else {})
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": problem.reason,
        "domain": DOMAIN,
        "metadata": metadata,
    }
    return {"code": problem.code, "message": problem.message, "details": [info]}


def encode(document: dict[str, Any]) -> bytes:
    """Return a JSON document with a line's end, for terminals."""
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def phrase(code: int) -> str:
    """Return the reason phrase of an HTTP status."""
    return HTTPStatus(code).phrase
