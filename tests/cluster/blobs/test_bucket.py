"""A bucket of a real S3 server."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from libs.blobs import BlobError, Bucket, Denied, Location, MissingBucket, Unreachable
from libs.blobs.bucket import PART_BYTES
from tests.cluster.conftest import Cluster

pytestmark = pytest.mark.needs_cluster


@pytest.fixture
def location(cluster: Cluster) -> Location:
    """A bucket that is not there yet."""
    return Location(
        bucket=f"e-{secrets.token_hex(6)}",
        endpoint_url=cluster.s3_endpoint,
        region=cluster.s3_region,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )


@pytest_asyncio.fixture
async def bucket(location: Location) -> AsyncIterator[Bucket]:
    """A bucket of the test's own."""
    async with Bucket(location) as made:
        await made.create()
        yield made
        for key in [blob.key async for blob in made.list()]:
            await made.delete(key)
        await made.drop()


async def keys(bucket: Bucket, prefix: str = "") -> list[str]:
    """Return the keys that begin with a prefix."""
    return [blob.key async for blob in bucket.list(prefix)]


async def test_a_blob_is_there_until_it_is_deleted(bucket: Bucket) -> None:
    assert await bucket.put("contexts/a.tar.gz", b"content") == 7
    assert await bucket.exists("contexts/a.tar.gz")
    assert not await bucket.exists("contexts/a.tar")
    assert [(blob.key, blob.size) async for blob in bucket.list("contexts/")] == [
        ("contexts/a.tar.gz", 7)
    ]
    await bucket.delete("contexts/a.tar.gz")
    await bucket.delete("contexts/a.tar.gz")
    assert await keys(bucket) == []


async def test_an_empty_stream_is_an_empty_blob(bucket: Bucket) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for chunk in ():
            yield chunk

    assert await bucket.put("empty", nothing()) == 0
    assert await bucket.exists("empty")


async def test_a_long_stream_goes_up_in_parts(bucket: Bucket) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(20):
            yield bytes([number]) * 1024 * 1024

    assert await bucket.put("long", chunks()) == 20 * 1024 * 1024
    assert [blob.size async for blob in bucket.list("long")] == [20 * 1024 * 1024]


async def test_a_stream_that_breaks_leaves_neither_blob_nor_parts(bucket: Bucket) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (2 * PART_BYTES + 1)
        yield b"x" * PART_BYTES
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        await bucket.put("broken", breaks())
    assert await keys(bucket) == []
    uploads = await bucket._client.list_multipart_uploads(Bucket=bucket.location.bucket)  # pyright: ignore
    assert uploads.get("Uploads", []) == []


async def test_lists_go_over_many_pages(bucket: Bucket) -> None:
    names = [f"many/{number:04}" for number in range(7)]
    for name in [*names, "other"]:
        await bucket.put(name, b"")
    bucket.page_keys = 3
    assert await keys(bucket, "many/") == names


async def test_a_missing_bucket_is_named(location: Location) -> None:
    async with Bucket(location) as missing:
        for call in (missing.put("a", b""), missing.exists("a"), keys(missing)):
            with pytest.raises(MissingBucket, match=location.bucket):
                await call


async def test_a_bucket_may_be_made_twice(bucket: Bucket) -> None:
    await bucket.create()


@pytest.mark.parametrize("field", ["access_key_id", "secret_access_key"])
async def test_wrong_credentials_are_denied(location: Location, field: str) -> None:
    async with Bucket(dataclasses.replace(location, **{field: "wrong"})) as wrong:
        with pytest.raises(Denied):
            await wrong.put("a", b"")


async def test_what_does_not_answer_is_unreachable_after_a_few_tries(location: Location) -> None:
    nowhere = dataclasses.replace(location, endpoint_url="http://127.0.0.1:9")
    async with Bucket(nowhere, attempts=3) as bucket:
        began = time.monotonic()
        with pytest.raises(Unreachable) as raised:
            await bucket.put("a", b"")
        assert time.monotonic() - began < 20
    assert isinstance(raised.value, BlobError)
