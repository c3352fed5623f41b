"""What a bucket answers when it does not do what it was asked."""

from __future__ import annotations


class BlobError(Exception):
    """The storage refused, in a way that a retry does not change."""


class Unreachable(BlobError):
    """The storage did not answer, or was overloaded: the same call may succeed later."""


class Denied(BlobError):
    """The credentials are wrong, or lack a right."""


class MissingBucket(BlobError):
    """There is no such bucket."""
