"""Page tokens of ListBuilds: the position of the last build of the page before."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta

from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION = "b1"
FIRST = (datetime(9999, 1, 1, tzinfo=UTC), "")


def to_token(time: datetime, build: str) -> str:
    """Return the token of a position."""
    microseconds = (time - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{_VERSION}:{microseconds}:{build}".encode()).decode()


def from_token(token: str) -> tuple[datetime, str]:
    """Return the position of a token; the empty one begins. Raises `MayflyError`."""
    if not token:
        return FIRST
    try:
        version, microseconds, build = base64.urlsafe_b64decode(token).decode().split(":")
        time = _EPOCH + timedelta(microseconds=int(microseconds))
    except (ValueError, binascii.Error, OverflowError):
        version, time, build = "", _EPOCH, ""
    if version != _VERSION:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN,
            "page_token was not made by ListBuilds",
            fix="use next_page_token of the page before",
            field="page_token",
        )
    return time, build


def page_size(asked: int) -> int:
    """Return how many a page has: 50 where nothing is asked, at most 1000."""
    if asked < 0:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            "page_size is negative",
            fix="use 0 or more",
            field="page_size",
        )
    return min(asked or 50, 1000)
