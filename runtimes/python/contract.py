"""The handler contract, version 1: what a handler gets and what its results mean."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote

CONTRACT_VERSION = "1"

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BYTES: tuple[type[Any], ...] = (bytes, bytearray, memoryview)
_FRAMING = ("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade")


class Event(dict[str, Any]):
    """A request, as a dict whose keys can also be read as attributes.

    method: upper case.       path: percent-decoded, without the function's prefix.
    headers: lower-case names; repeated ones joined with ", ".
    query: name to value; the last one where a name is repeated. query_pairs: all, in order.
    body: str where it is UTF-8, else bytes; "" without a body.
    raw_path, raw_query: as they came.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self["body"])


class Response:
    """A full answer: body as any value a handler may return, status and headers."""

    def __init__(
        self, body: Any = b"", status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.body = body
        self.status = status
        self.headers = headers or {}


class Context:
    """What a handler may know about its surroundings. `deadline`: seconds since the epoch."""

    contract_version = CONTRACT_VERSION
    response = Response

    def __init__(self, function_id: str, request_id: str, timeout: float) -> None:
        self.function_id = function_id
        self.request_id = request_id
        self.deadline = time.time() + timeout

    def remaining(self) -> float:
        """Seconds until the caller is told that this took too long."""
        return self.deadline - time.time()


class ResultRefused(Exception):
    """A handler's result cannot become a response."""


Stream = Any  # an iterator or asynchronous iterator


class Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes | Stream
    is_stream: bool


def make_event(method: str, target: str, headers: dict[str, str], body: bytes) -> Event:
    raw_path, _, raw_query = target.partition("?")
    pairs = parse_qsl(raw_query, keep_blank_values=True)
    text: str | bytes
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body
    return Event(
        method=method,
        path=unquote(raw_path),
        headers=headers,
        query=dict(pairs),
        query_pairs=pairs,
        body=text,
        raw_path=raw_path,
        raw_query=raw_query,
    )


def request_id(headers: dict[str, str]) -> str:
    given = headers.get("x-request-id")
    if given:
        return given
    import uuid  # seldom needed: proxies make one

    return str(uuid.uuid4())


def is_async_stream(value: Any) -> bool:
    return hasattr(value, "__anext__") or hasattr(value, "__aiter__")


def encode_item(item: Any) -> bytes:
    """One item of a stream: bytes and text as they are, other values as a line of JSON."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, _BYTES):
        return bytes(item)
    return _to_json(item) + b"\n"


def make_reply(result: Any) -> Reply:
    """What a handler returned, as a response. Raises ResultRefused."""
    status: Any = 200
    extra: dict[Any, Any] = {}
    if _is_status_tuple(result):
        status = result[1]
        extra = dict(result[2]) if len(result) == 3 and result[2] else {}
        result = result[0]
    elif _is_response(result):
        status = getattr(result, "status", None) or getattr(result, "status_code", 200)
        extra = dict(getattr(result, "headers", None) or {})
        result = result.body if hasattr(result, "body") else result.content
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ResultRefused(f"{status!r} is no status of a response (200 to 599)")
    body, kind, stream = _encode_body(result)
    headers = [_checked_header(str(name), value) for name, value in extra.items()]
    if kind and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("content-type", kind))
    return Reply(status, headers, body, stream)


def _is_status_tuple(value: Any) -> bool:
    if type(value) is not tuple:
        return False
    parts = cast("tuple[Any, ...]", value)
    return (
        len(parts) in (2, 3)
        and isinstance(parts[1], int)
        and not isinstance(parts[1], bool)
        and (len(parts) == 2 or parts[2] is None or hasattr(parts[2], "items"))
    )


def _is_response(value: Any) -> bool:
    """Anything with a body and a status: `ctx.response`, or a web framework's own."""
    return (hasattr(value, "status") or hasattr(value, "status_code")) and (
        hasattr(value, "body") or hasattr(value, "content")
    )


def _encode_body(value: Any) -> tuple[Any, str, bool]:
    if isinstance(value, str):
        return value.encode(), "text/plain; charset=utf-8", False
    if isinstance(value, _BYTES):
        return bytes(value), "application/octet-stream", False
    if is_async_stream(value) or hasattr(value, "__next__"):
        return value, "application/octet-stream", True
    return _to_json(value), "application/json", False


def _to_json(value: Any) -> bytes:
    refuse: Callable[[Any], Any] = _refuse_value
    try:
        return json.dumps(
            value, default=refuse, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        ).encode()
    except (ValueError, RecursionError, TypeError) as error:
        raise ResultRefused(f"the result is not JSON: {error}") from error


def _refuse_value(value: Any) -> Any:
    raise ResultRefused(
        f"the result is not JSON: it holds a {type(value).__name__}; return dicts, lists, text, "
        "numbers, bytes, an iterator or ctx.response(...)"
    )


def _checked_header(name: str, value: Any) -> tuple[str, str]:
    text = str(value)
    if not _HEADER_NAME.fullmatch(name) or any(c in text for c in "\r\n\0"):
        raise ResultRefused(f"{name!r} is no valid header")
    if name.lower() in _FRAMING:
        raise ResultRefused(f"the header {name!r} is set by the server")
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        raise ResultRefused(f"the header {name!r} has characters beyond Latin-1") from None
    return name, text
