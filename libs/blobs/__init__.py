"""S3-compatible storage, and nothing else: the only package that imports its client."""

from libs.blobs.bucket import Blob, Bucket, Location
from libs.blobs.errors import BlobError, Denied, MissingBucket, Unreachable

__all__ = [
    "Blob",
    "BlobError",
    "Bucket",
    "Denied",
    "Location",
    "MissingBucket",
    "Unreachable",
]
