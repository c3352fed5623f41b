"""Page tokens of ListReceipts: opaque to callers, a position in the list to the janitor."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any

from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError
from services.janitor.receipts import FIRST, Position

_DEFAULT = 50
_MOST = 1000


def page_size(asked: int) -> int:
    """Return how many a page holds. Raises `MayflyError` for a negative one."""
    if asked < 0:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            f"page_size is {asked}",
            fix="leave it out, or give a number from 1 to 1000",
            field="page_size",
        )
    return min(asked or _DEFAULT, _MOST)


def to_token(position: Position | None) -> str:
    """Return the token of a position; empty for none."""
    if position is None:
        return ""
    text = json.dumps([position.reclaim_time.isoformat(), position.uid])
    return base64.urlsafe_b64encode(text.encode()).decode()


def from_token(token: str) -> Position:
    """Return the position of a token. Raises `MayflyError` when it was not made here."""
    if not token:
        return FIRST
    try:
        parts: Any = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        time, uid = parts
        position = Position(datetime.fromisoformat(time), str(uid))
    except (binascii.Error, ValueError, TypeError):
        position = None
    if position is None or position.reclaim_time.tzinfo is None:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN,
            "page_token was not made by ListReceipts",
            fix="begin again without a page_token",
            field="page_token",
        )
    return position
