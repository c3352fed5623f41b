"""What the API server refuses, and how: one exception for each thing that can be done about it."""

from __future__ import annotations

import json
import re
from typing import Any, cast

_LACKS = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"(?: in API group "(?P<group>[^"]*)")?'
)
_TRANSIENT = frozenset({401, 408, 429, 500, 502, 503, 504})


class KubeError(Exception):
    """The API server did not do what was asked."""


class Unavailable(KubeError):
    """It did not answer, or cannot for now; whether it did what was asked is not known.

    retry_after: seconds that it asked to wait; 0: it said nothing.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(KubeError):
    """The service account lacks `verb` on `resource` (with its group: "services.apps").

    Both are empty where an admission rule of the cluster refused the object.
    """

    def __init__(self, verb: str, resource: str, message: str) -> None:
        super().__init__(message)
        self.verb = verb
        self.resource = resource
        self.message = message


class QuotaExceeded(KubeError):
    """A ResourceQuota of the namespace is used up; `message` names what of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(KubeError):
    """The object is not one that the API server or a webhook takes."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AlreadyExists(KubeError):
    """There is one of this name."""


class Conflict(KubeError):
    """It, or a quota that counts it, was changed at the same time; or it is another one than was
    meant. Nothing has been done."""


class NotFound(KubeError):
    """It is not there, nor is its namespace or its kind."""


class Expired(KubeError):
    """The resource version is too old to go on from (410): list anew."""


def error_of(status: int, body: bytes, retry_after: str | None = None) -> KubeError:
    """Return the exception for an answer that is none of 2xx; `body` is a Status, or anything."""
    said = _status(body)
    message = said.get("message") or body[:500].decode("utf-8", "replace") or f"HTTP {status}"
    if status in _TRANSIENT:
        return Unavailable(message, _seconds(retry_after, said))
    if status == 403:
        return _forbidden(message)
    if status == 404:
        return NotFound(message)
    if status == 409:
        return (
            AlreadyExists(message) if said.get("reason") == "AlreadyExists" else Conflict(message)
        )
    if status == 410:
        return Expired(message)
    if status in (400, 405, 406, 413, 415, 422):
        return Invalid(message)
    return KubeError(f"HTTP {status}: {message}")


def _forbidden(message: str) -> KubeError:
    if "exceeded quota" in message:
        return QuotaExceeded(message)
    if found := _LACKS.search(message):
        group = found["group"]
        resource = f"{found['resource']}.{group}" if group else found["resource"]
        return Forbidden(found["verb"], resource, message)
    return Forbidden("", "", message)


def _status(body: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _seconds(retry_after: str | None, said: dict[str, Any]) -> float:
    details = cast("dict[str, Any]", said.get("details") or {})
    for value in (retry_after, details.get("retryAfterSeconds")):
        try:
            return max(0.0, float(value or ""))
        except ValueError:
            continue  # Retry-After may be a date, which the API server does not send
    return 0.0
