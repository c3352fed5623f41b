"""What Envoy answers by itself, as JSON: mappers for `local_reply_config`.

Envoy picks the first mapper whose filter matches. Callers of functions and of /v1 get different
forms (see `errors`), as their listeners do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from services.gateway.errors import (
    BAD_REQUEST,
    BROKE_OFF,
    NO_RESPONSE_IN_TIME,
    NO_SUCH_PAGE,
    UNREACHABLE,
    Problem,
    body,
    status_body,
)

_TRANSCODED = "x-envoy-original-method"

# Envoy's response flags:
# https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage
_TIMED_OUT = ("UT", "SI", "DT", "UMSDR")
_BROKE_OFF = ("UC", "UR", "UPE")
_UNREACHABLE = ("UF", "UH", "UO", "NR", "NC", "URX", "LR", "OM")


@dataclass(frozen=True)
class Rule:
    """Which of Envoy's replies is which problem."""

    problem: Problem
    flags: tuple[str, ...] = ()
    code: int = 0
    # Envoy's own text says more than the problem's message.
    keep_text: bool = False


_TOO_LARGE = Problem(
    413,
    "INVALID_ARGUMENT",
    "SOURCE_TOO_LARGE",
    "the request's body is larger than this Mayfly takes",
    "send less: put large data where the function can fetch it",
)
_HEADERS_TOO_LARGE = Problem(
    431,
    "INVALID_ARGUMENT",
    "INVALID_FIELD",
    "the request's headers are too large",
    "send at most 60 KiB and 100 lines of headers",
)
_TOO_SLOW = Problem(
    408,
    "DEADLINE_EXCEEDED",
    "INVALID_FIELD",
    "the request's headers did not arrive in time",
    "send them within 10 seconds",
)
_OVERLOADED = Problem(
    503,
    "UNAVAILABLE",
    "UNAVAILABLE",
    "the gateway cannot take this request at the moment",
    "try again in a moment",
)
_FUNCTION_RULES = (
    Rule(NO_RESPONSE_IN_TIME, flags=_TIMED_OUT),
    Rule(BROKE_OFF, flags=_BROKE_OFF),
    Rule(UNREACHABLE, flags=_UNREACHABLE),
    Rule(BROKE_OFF, code=502),
    Rule(NO_SUCH_PAGE, code=404),
    Rule(_TOO_SLOW, code=408),
    Rule(_TOO_LARGE, code=413),
    Rule(_HEADERS_TOO_LARGE, code=431),
    Rule(NO_RESPONSE_IN_TIME, code=504),
    Rule(BAD_REQUEST, code=400, keep_text=True),
    Rule(replace(BAD_REQUEST, http=403, status="PERMISSION_DENIED"), code=403, keep_text=True),
)
_SERVICE_AWAY = Problem(
    503,
    "UNAVAILABLE",
    "UNAVAILABLE",
    "the service that answers this is not reachable",
    "try again in a moment; GET /healthz names the part that is away",
)
_BAD_FIELD = Problem(
    400,
    "INVALID_ARGUMENT",
    "INVALID_FIELD",
    "the request cannot be read",
    "send JSON with the fields and query parameters that /openapi.json describes; a duration is "
    'seconds with an "s", such as "90s"',
)
_NO_SUCH_METHOD = Problem(
    404,
    "NOT_FOUND",
    "NOT_FOUND",
    "the API has no such method",
    "GET /openapi.json lists the paths and verbs",
)
_API_RULES = (
    Rule(replace(_SERVICE_AWAY, http=504, status="DEADLINE_EXCEEDED"), flags=_TIMED_OUT),
    Rule(_SERVICE_AWAY, flags=(*_BROKE_OFF, *_UNREACHABLE)),
    Rule(_NO_SUCH_METHOD, code=404),
    Rule(
        replace(_NO_SUCH_METHOD, http=405, status="UNIMPLEMENTED", message="not with this verb"),
        code=405,
    ),
    # A source over the limit is a bad field, whoever finds it.
    Rule(replace(_TOO_LARGE, http=400), code=413),
    Rule(_TOO_SLOW, code=408),
    Rule(_HEADERS_TOO_LARGE, code=431),
    Rule(_BAD_FIELD, code=400, keep_text=True),
)


def function_replies() -> dict[str, Any]:
    """Return the `local_reply_config` of a connection manager that reaches functions."""
    return {
        "mappers": [_plain([]), *(_mapper(rule, body(rule.problem)) for rule in _FUNCTION_RULES)],
        "body_format": _format(body(_OVERLOADED)),
    }


def api_replies() -> dict[str, Any]:
    """Return the `local_reply_config` of a connection manager that transcodes /v1."""
    return {
        "mappers": [
            _plain([_not_transcoded()]),
            *(_mapper(rule, status_body(rule.problem)) for rule in _API_RULES),
        ],
        "body_format": _format(status_body(_OVERLOADED)),
    }


def _plain(further: list[dict[str, Any]]) -> dict[str, Any]:
    """Leave the text as it is for a gRPC client: it becomes the status's message."""
    content_type = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    filters = [{"header_filter": {"header": content_type}}, *further]
    text = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    return {"filter": _all(filters), "body_format_override": text}


def _mapper(rule: Rule, document: dict[str, Any]) -> dict[str, Any]:
    filters: list[dict[str, Any]] = []
    if rule.flags:
        filters.append({"response_flag_filter": {"flags": list(rule.flags)}})
    if rule.code:
        value = {"default_value": rule.code, "runtime_key": "unused"}
        filters.append({"status_code_filter": {"comparison": {"op": "EQ", "value": value}}})
    if rule.keep_text:
        document = _with_envoys_text(document)
    return {
        "filter": _all(filters),
        "status_code": rule.problem.http,
        "body_format_override": _format(document),
    }


def _all(filters: list[dict[str, Any]]) -> dict[str, Any]:
    return filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}


def _with_envoys_text(document: dict[str, Any]) -> dict[str, Any]:
    if "error" in document:
        return {"error": document["error"] | {"message": "%LOCAL_REPLY_BODY%"}}
    return document | {"message": "%LOCAL_REPLY_BODY%"}


def _format(document: dict[str, Any]) -> dict[str, Any]:
    return {"json_format": document, "content_type": "application/json"}


def _not_transcoded() -> dict[str, Any]:
    """Whether a gRPC request came as such: the transcoder leaves the method it was."""
    header = {"name": _TRANSCODED, "present_match": True, "invert_match": True}
    return {"header_filter": {"header": header}}
