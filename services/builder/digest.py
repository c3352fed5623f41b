"""Names that follow from content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# Raised by a change that makes artefacts or environments of older builders unfit.
BUILDER_VERSION = "1"
ID_DIGITS = 20


def build_id(*, runtime: str, kind: str, source: bytes, platform: str, fingerprint: str) -> str:
    """Return a build's id: 20 hex digits over everything that decides its result.

    Requirements are part of the source, as requested; `fingerprint` is what the backend adds (its
    default interpreter, its compiler).
    """
    fields = ("build", BUILDER_VERSION, runtime, kind, platform, fingerprint)
    return _digest([*(field.encode() for field in fields), source])


def environment_digest(*, interpreter: str, requirements: Iterable[str], platform: str) -> str:
    """Return an environment's digest: 20 hex digits.

    `interpreter` names version and path, `requirements` are the resolved lines in any order.
    """
    fields = ("environment", BUILDER_VERSION, interpreter, platform, *sorted(requirements))
    return _digest([field.encode() for field in fields])


def resolution_key(
    *, interpreter: str, requirements: Iterable[str], options: Iterable[str], platform: str
) -> str:
    """Return the key under which the resolution of these requirements is kept."""
    parts = ("resolution", BUILDER_VERSION, interpreter, platform)
    requested = sorted(set(requirements))
    fields = (*parts, str(len(requested)), *requested, *options)
    return _digest([field.encode() for field in fields])


def _digest(fields: Iterable[bytes]) -> str:
    # Each field with its length: no two lists of fields give the same bytes.
    whole = hashlib.sha256()
    for field in fields:
        whole.update(len(field).to_bytes(8, "big"))
        whole.update(field)
    return whole.hexdigest()[:ID_DIGITS]
