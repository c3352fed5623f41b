"""Names, ids and page tokens."""

from __future__ import annotations

import base64
import json
import re
import secrets
from datetime import UTC, datetime

from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError

# A label of RFC 1123, section 2.1: letters, digits and inner hyphens, in lower case because
# hosts are compared without case.
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def new_uid() -> str:
    """Return 16 random hex digits."""
    return secrets.token_hex(8)


def new_id() -> str:
    """Return an id for a function whose owner named none. Example: "fn-k3vq8x2m"."""
    return "fn-" + "".join(secrets.choice(_ALPHABET) for _ in range(8))


def id_of(name: str, field: str = "name") -> str:
    """Return the id in `functions/{id}`. Raises `MayflyError` when `name` has another shape."""
    collection, _, function_id = name.partition("/")
    if collection != "functions" or not LABEL.fullmatch(function_id):
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            f"{name[:80]!r} is not the name of a function",
            fix="write it as functions/{function}, where {function} is a DNS label",
            field=field,
        )
    return function_id


def page_token(create_time: datetime, uid: str) -> str:
    """Return the token of the page after this function."""
    text = json.dumps(["functions", create_time.timestamp(), uid])
    return base64.urlsafe_b64encode(text.encode()).decode()


def parse_page_token(token: str) -> tuple[datetime, str] | None:
    """Return what `page_token` was made of; None for the first page.

    Raises `MayflyError` for a token of another method or of nobody.
    """
    if not token:
        return None
    try:
        kind, seconds, uid = json.loads(base64.urlsafe_b64decode(token.encode()))
        if kind != "functions" or not isinstance(uid, str) or not isinstance(seconds, float):
            raise ValueError(token)
        return datetime.fromtimestamp(seconds, UTC), uid
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise MayflyError(
            ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN,
            "the page token was not made by ListFunctions",
            fix="use next_page_token of the page before, or none for the first page",
            field="page_token",
        ) from error
