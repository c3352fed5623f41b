"""From the client's errors to ours."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnection

from libs.blobs.errors import BlobError, Denied, MissingBucket, Unreachable

_DENIED = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "XAdminUserNotFound",  # a Versity gateway, of a key that it does not know
        "403",
        "401",
    }
)
_BUSY = frozenset({"SlowDown", "Throttling", "RequestTimeout", "RequestLimitExceeded"})


@contextmanager
def answered(bucket: str) -> Generator[None]:
    """Turn what the client raises into a `BlobError`."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise Denied(f"there are no credentials for bucket {bucket}: {error}") from error
    except (HTTPClientError, NoConnection) as error:
        raise Unreachable(f"bucket {bucket}: {error}") from error
    except ClientError as error:
        response = cast("Mapping[str, Any]", error.response)
        raise of_answer(bucket, response) from error
    except BotoCoreError as error:
        raise BlobError(f"bucket {bucket}: {error}") from error


def of_answer(bucket: str, response: Mapping[str, Any]) -> BlobError:
    """Return what an error response says (S3's "Error responses" lists the codes)."""
    told = response.get("Error", {})
    code, message = str(told.get("Code", "")), str(told.get("Message", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"bucket {bucket}: {code}: {message}" if message else f"bucket {bucket}: {code}"
    if code == "NoSuchBucket":
        return MissingBucket(f"there is no bucket {bucket}")
    if code in _BUSY or status == 429 or status >= 500:
        return Unreachable(text)
    if code in _DENIED or status in (401, 403):
        return Denied(text)
    return BlobError(text)
