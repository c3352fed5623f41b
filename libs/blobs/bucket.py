"""One bucket of an S3-compatible storage (AWS, R2, MinIO and others)."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, cast

import aioboto3
from botocore.config import Config

from libs.blobs.answers import answered
from libs.blobs.errors import BlobError
from libs.blobs.parts import in_parts

# S3 takes no part below 5 MiB but the last, and at most 10,000: enough for 78 GiB.
PART_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Location:
    """Where a bucket is, and who asks.

    `endpoint_url` is empty for AWS itself; `path_style` puts the bucket into the path instead of
    the host name, as most other servers want it. Without keys the client looks for them where
    AWS' own tools do (variables, files, the pod's identity).
    """

    bucket: str
    endpoint_url: str = ""
    region: str = "us-east-1"
    path_style: bool = True
    access_key_id: str = ""
    secret_access_key: str = ""


@dataclass(frozen=True)
class Blob:
    """A key and the bytes behind it, counted."""

    key: str
    size: int


class Bucket:
    """Each call is retried a few times with back-off, then raises `BlobError`."""

    def __init__(
        self, location: Location, *, attempts: int = 4, connect_seconds: float = 5.0
    ) -> None:
        """`connect_seconds` and 30 s without a byte are what one attempt waits."""
        self.location = location
        self._config = Config(
            retries={"max_attempts": max(0, attempts - 1), "mode": "standard"},
            connect_timeout=connect_seconds,
            read_timeout=30,
            s3={"addressing_style": "path" if location.path_style else "virtual"},
            # Checksums that only AWS knows are sent where a call cannot do without.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # Keys asked for in a page; S3 gives no more than 1000.
        self.page_keys = 1000
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def __aenter__(self) -> Bucket:
        where = self.location
        session = aioboto3.Session(
            aws_access_key_id=where.access_key_id or None,
            aws_secret_access_key=where.secret_access_key or None,
            region_name=where.region,
        )
        opened = cast(
            "AbstractAsyncContextManager[Any]",
            session.client("s3", endpoint_url=where.endpoint_url or None, config=self._config),  # pyright: ignore[reportUnknownArgumentType]
        )
        self._client = await self._stack.enter_async_context(opened)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def put(self, key: str, body: bytes | AsyncIterable[bytes]) -> int:
        """Write a blob; return its bytes. A stream is never held whole: it goes up in parts."""
        chunks = _once(body) if isinstance(body, bytes) else body
        parts = in_parts(chunks, PART_BYTES)
        first = await anext(parts, b"")
        second = await anext(parts, None)
        if second is None:
            with answered(self.location.bucket):
                await self._client.put_object(Bucket=self.location.bucket, Key=key, Body=first)
            return len(first)
        return await self._put_parts(key, _after([first, second], parts))

    async def exists(self, key: str) -> bool:
        """Whether there is a blob of this key."""
        # A HEAD has no body, so that its 404 does not tell a missing key from a missing bucket.
        return any([blob.key == key async for blob in self.list(key)])

    async def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is no error."""
        with answered(self.location.bucket):
            await self._client.delete_object(Bucket=self.location.bucket, Key=key)

    async def list(self, prefix: str = "") -> AsyncIterator[Blob]:
        """Yield the blobs whose keys begin with `prefix`, page by page, by key."""
        token: dict[str, str] = {}
        while True:
            with answered(self.location.bucket):
                page = await self._client.list_objects_v2(
                    Bucket=self.location.bucket, Prefix=prefix, MaxKeys=self.page_keys, **token
                )
            for item in page.get("Contents", []):
                yield Blob(item["Key"], item["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def create(self) -> None:
        """Make the bucket; one that is ours already is no error."""
        owned: type[Exception] = self._client.exceptions.BucketAlreadyOwnedByYou
        with answered(self.location.bucket), suppress(owned):
            await self._client.create_bucket(Bucket=self.location.bucket)

    async def drop(self) -> None:
        """Remove the bucket, which has to be empty."""
        with answered(self.location.bucket):
            await self._client.delete_bucket(Bucket=self.location.bucket)

    async def _put_parts(self, key: str, parts: AsyncIterator[bytes]) -> int:
        target = {"Bucket": self.location.bucket, "Key": key}
        with answered(self.location.bucket):
            upload = await self._client.create_multipart_upload(**target)
        target["UploadId"] = upload["UploadId"]
        done: list[dict[str, Any]] = []
        total = 0
        try:
            async for part in parts:
                number = len(done) + 1
                with answered(self.location.bucket):
                    sent = await self._client.upload_part(**target, PartNumber=number, Body=part)
                done.append({"PartNumber": number, "ETag": sent["ETag"]})
                total += len(part)
            with answered(self.location.bucket):
                await self._client.complete_multipart_upload(
                    **target, MultipartUpload={"Parts": done}
                )
        except BaseException:
            # Parts of an upload that never ends are charged for, and no listing shows them.
            with suppress(BlobError), answered(self.location.bucket):
                await self._client.abort_multipart_upload(**target)
            raise
        return total


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _after(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in first:
        yield part
    async for part in rest:
        yield part
