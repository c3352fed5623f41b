"""The client against a real registry."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.registry import Repository, Transport, Unreachable, digest_of, parse
from libs.registry.repository import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.cluster.conftest import Cluster


@pytest.fixture
async def transport(cluster: Cluster) -> AsyncIterator[Transport]:
    transport = Transport(cluster.registry, insecure=True, auth=None, patience=5)
    yield transport
    await transport.close()


@pytest.fixture
async def repository(transport: Transport) -> AsyncIterator[Repository]:
    repository = Repository(transport, f"d-test/{secrets.token_hex(6)}")
    yield repository
    for tag in await repository.tags():
        digest = await repository.manifest_digest(tag)
        if digest:
            await repository.delete_manifest(digest)


async def push(repository: Repository, tag: str, text: str) -> str:
    config, layer = json.dumps({"text": text}).encode(), text.encode()
    for blob in (config, layer):
        await repository.upload(digest_of(blob), blob)
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(layer), "size": len(layer)}],
    }
    return await repository.put_manifest(tag, json.dumps(content).encode())


async def test_blobs_from_memory_and_from_files(repository: Repository, tmp_path: Path) -> None:
    small, large = secrets.token_bytes(100), secrets.token_bytes(3 << 20)
    file = tmp_path / "blob"
    file.write_bytes(large)
    assert not await repository.blob_exists(digest_of(small))
    await repository.upload(digest_of(small), small)
    await repository.upload(digest_of(large), file)
    assert await repository.blob(digest_of(small)) == small
    async with repository.open_blob(digest_of(large)) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == large


async def test_a_blob_of_another_content_is_refused_and_no_upload_stays(
    repository: Repository,
) -> None:
    from libs.registry import RegistryError

    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        await repository.upload(digest_of(b"this"), b"that")
    assert not await repository.blob_exists(digest_of(b"this"))


async def test_blobs_are_mounted_from_another_repository(
    repository: Repository, transport: Transport
) -> None:
    other = Repository(transport, f"{repository.name}-other")
    blob = secrets.token_bytes(64)
    await repository.upload(digest_of(blob), blob)
    assert await other.mount(digest_of(blob), repository.name)
    assert await other.blob(digest_of(blob)) == blob
    assert not await other.mount(digest_of(b"unknown"), repository.name)


async def test_manifests_tags_and_what_deleting_does(repository: Repository) -> None:
    assert await repository.tags() == []
    assert await repository.manifest("one") is None
    digest = await push(repository, "one", "same")
    assert await push(repository, "two", "same") == digest
    other = await push(repository, "three", "other")
    found = await repository.manifest("one")
    assert found is not None
    assert (found.digest, found.media_type) == (digest, OCI_MANIFEST)
    assert sorted(await repository.tags()) == ["one", "three", "two"]

    assert await repository.delete_tag("one")
    assert sorted(await repository.tags()) == ["three", "two"]
    assert await repository.manifest_digest("two") == digest

    assert await repository.delete_manifest(digest)
    assert not await repository.delete_manifest(digest)
    assert await repository.manifest_digest("two") is None
    assert await repository.manifest_digest(other) == other
    assert await repository.tags() == ["three"]


async def test_tags_come_in_pages(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from libs.registry import repository as module

    monkeypatch.setattr(module, "_TAGS_A_PAGE", 3)
    wanted = [f"t{number:02}" for number in range(8)]
    for tag in wanted:
        await push(repository, tag, "same")
    assert sorted(await repository.tags()) == wanted


async def test_what_does_not_listen_is_tried_again_and_then_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    transport = Transport(address, insecure=True, auth=None, patience=0.5)
    said: list[str] = []
    try:
        with pytest.raises(Unreachable, match=address):
            await Repository(transport, "x", said.append).tags()
    finally:
        await transport.close()
    assert said
    assert "trying again" in said[0]


async def test_a_cancelled_upload_leaves_nothing_under_way(repository: Repository) -> None:
    blob = secrets.token_bytes(1000)
    begun = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        yield blob[:10]
        begun.set()
        await asyncio.Event().wait()

    uploading = asyncio.create_task(
        repository._upload(digest_of(blob), len(blob), never)  # pyright: ignore
    )
    await begun.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert not await repository.blob_exists(digest_of(blob))
    await repository.upload(digest_of(blob), blob)
    assert await repository.blob_exists(digest_of(blob))


def test_names_are_taken_apart() -> None:
    assert parse("alpine").name == "docker.io/library/alpine:latest"
    assert parse("me/hello:1").name == "docker.io/me/hello:1"
    assert parse("reg:5000/a/b@sha256:00").name == "reg:5000/a/b@sha256:00"
    assert parse("localhost/a").host == "localhost"
