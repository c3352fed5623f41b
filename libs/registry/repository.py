"""One repository of a registry, by the OCI distribution specification 1.1
(https://github.com/opencontainers/distribution-spec/blob/main/spec.md)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

from libs.registry.errors import NotFound, RegistryError, Unreachable, Unsupported
from libs.registry.transport import Body, Transport

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPTED = ", ".join((OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST))
_CHUNK = 1 << 20
_LARGEST_DOCUMENT = 8 << 20
_TAGS_A_PAGE = 1000


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index as it is in the registry."""

    digest: str
    media_type: str
    raw: bytes

    @property
    def content(self) -> dict[str, Any]:
        """It as JSON. Raises `RegistryError`."""
        try:
            return cast("dict[str, Any]", json.loads(self.raw))
        except ValueError as error:
            raise RegistryError(f"the manifest {self.digest} is no JSON") from error


class Repository:
    """Blobs, manifests and tags. Calls are retried while the registry is away, then `Unreachable`.

    `say` gets a line for each retry.
    """

    def __init__(
        self, transport: Transport, name: str, say: Callable[[str], None] | None = None
    ) -> None:
        self._transport = transport
        self.name = name
        self._say = say
        self._pull = f"repository:{name}:pull"
        self._push = f"repository:{name}:pull,push"
        self._delete = f"repository:{name}:delete,pull,push"

    @property
    def full_name(self) -> str:
        """With the registry. Example: "registry.example:5000/mayfly/functions"."""
        return f"{self._transport.host}/{self.name}"

    def telling(self, say: Callable[[str], None]) -> Repository:
        """Return it with another `say`."""
        return Repository(self._transport, self.name, say)

    # Blobs

    async def blob_exists(self, digest: str) -> bool:
        async def ask() -> bool:
            async with self._transport.request(
                "HEAD", self._path("blobs", digest), scope=self._pull, missing=True
            ) as response:
                return response.status == 200

        return await self._transport.retrying(ask, self._say)

    async def blob(self, digest: str) -> bytes:
        """Return a small blob whole, such as an image's configuration."""

        async def ask() -> bytes:
            async with self.open_blob(digest) as chunks:
                content = b"".join([chunk async for chunk in chunks])
            if len(content) > _LARGEST_DOCUMENT:
                raise RegistryError(f"the blob {digest} is too large for a document")
            if digest != digest_of(content):
                raise RegistryError(f"the blob {digest} has another content")
            return content

        return await self._transport.retrying(ask, self._say)

    @asynccontextmanager
    async def open_blob(self, digest: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Read a blob in chunks; once, without retries."""
        async with self._transport.request(
            "GET", self._path("blobs", digest), scope=self._pull
        ) as response:
            yield response.content.iter_chunked(_CHUNK)

    async def mount(self, digest: str, source: str) -> bool:
        """Take a blob over from the repository `source` of the same registry; whether it could."""

        async def ask() -> bool:
            query = urlencode({"mount": digest, "from": source})
            # The token has to reach both.
            scope = f"{self._push} repository:{source}:pull"
            async with self._transport.request(
                "POST", f"{self._path('blobs', 'uploads/')}?{query}", scope=scope
            ) as response:
                if response.status == 201:
                    return True
                location = response.headers.get("Location", "")
            await self._cancel(location)
            return False

        return await self._transport.retrying(ask, self._say)

    async def upload(self, digest: str, content: bytes | Path, *, is_new: bool = False) -> None:
        """Upload a blob unless it is there; `is_new`: without looking."""
        if not is_new and await self.blob_exists(digest):
            return
        if isinstance(content, bytes):
            await self._upload(digest, len(content), lambda: _pieces(content))
        else:
            size = (await asyncio.to_thread(content.stat)).st_size
            await self._upload(digest, size, lambda: _chunks(content))

    async def upload_from(self, digest: str, size: int, source: Repository) -> None:
        """Copy a blob from another registry, in chunks, unless it is there."""
        if await self.blob_exists(digest):
            return

        async def chunks() -> AsyncIterator[bytes]:
            async with source.open_blob(digest) as blob:
                async for chunk in blob:
                    yield chunk

        await self._upload(digest, size, chunks)

    async def _upload(self, digest: str, size: int, body: Body) -> None:
        async def once() -> None:
            location = await self._begin()
            try:
                mark = "&" if "?" in location else "?"
                async with self._transport.request(
                    "PUT",
                    f"{location}{mark}{urlencode({'digest': digest})}",
                    scope=self._push,
                    headers={
                        "Content-Type": "application/octet-stream",
                        "Content-Length": str(size),
                    },
                    body=body,
                ):
                    return
            except BaseException:
                await asyncio.shield(self._cancel(location))
                raise

        await self._transport.retrying(once, self._say)

    async def _begin(self) -> str:
        async with self._transport.request(
            "POST", self._path("blobs", "uploads/"), scope=self._push
        ) as response:
            location = response.headers.get("Location", "")
        if not location:
            raise RegistryError("the registry gave no address to upload to")
        return location

    async def _cancel(self, location: str) -> None:
        """End an upload; a registry that cannot forgets it by itself."""
        if not location:
            return
        with suppress(RegistryError):
            async with self._transport.request("DELETE", location, scope=self._push, missing=True):
                return

    # Manifests

    async def manifest(self, reference: str) -> Manifest | None:
        """Return the manifest of a tag or a digest, None where there is none."""

        async def ask() -> Manifest | None:
            async with self._transport.request(
                "GET",
                self._path("manifests", reference),
                scope=self._pull,
                headers={"Accept": _ACCEPTED},
                missing=True,
            ) as response:
                if response.status == 404:
                    return None
                raw = await response.content.read(_LARGEST_DOCUMENT)
                while chunk := await response.content.read(_LARGEST_DOCUMENT):
                    raw += chunk
                kind = response.headers.get("Content-Type", OCI_MANIFEST).partition(";")[0]
            digest = digest_of(raw)
            if ":" in reference and digest != reference:
                raise RegistryError(f"the manifest {reference} has another content")
            return Manifest(digest, kind.strip(), raw)

        return await self._transport.retrying(ask, self._say)

    async def manifest_digest(self, reference: str) -> str | None:
        """Return the digest that a tag (or a digest) stands for, None where there is none."""

        async def ask() -> str | None:
            async with self._transport.request(
                "HEAD",
                self._path("manifests", reference),
                scope=self._pull,
                headers={"Accept": _ACCEPTED},
                missing=True,
            ) as response:
                if response.status == 404:
                    return None
                return response.headers.get("Docker-Content-Digest", "")

        digest = await self._transport.retrying(ask, self._say)
        if digest == "":  # the header is optional
            manifest = await self.manifest(reference)
            return manifest.digest if manifest else None
        return digest

    async def put_manifest(
        self, reference: str, content: bytes, media_type: str = OCI_MANIFEST
    ) -> str:
        """Put a manifest under a tag or its digest; return its digest."""

        async def put() -> None:
            async with self._transport.request(
                "PUT",
                self._path("manifests", reference),
                scope=self._push,
                headers={"Content-Type": media_type},
                body=content,
            ):
                return

        await self._transport.retrying(put, self._say)
        return digest_of(content)

    async def delete_manifest(self, digest: str) -> bool:
        """Delete a manifest with all its tags; False when it was not there.

        Raises `Unsupported` where the registry has deletion turned off.
        """

        async def delete() -> bool:
            async with self._transport.request(
                "DELETE", self._path("manifests", digest), scope=self._delete, missing=True
            ) as response:
                return response.status != 404

        return await self._transport.retrying(delete, self._say)

    async def delete_tag(self, tag: str) -> bool:
        """Delete a tag and leave its manifest to the other tags that have it.

        Where the registry deletes manifests only, the tag is first put on one of its own.
        """

        async def delete() -> bool:
            async with self._transport.request(
                "DELETE", self._path("manifests", tag), scope=self._delete, missing=True
            ) as response:
                return response.status != 404

        try:
            await self._transport.retrying(delete, self._say)
        except (Unsupported, RegistryError) as error:
            if isinstance(error, Unreachable):
                raise
        if await self.manifest_digest(tag) is None:
            return True
        own = await self._placeholder(tag)
        return await self.delete_manifest(await self.put_manifest(tag, own))

    async def _placeholder(self, tag: str) -> bytes:
        empty = b"{}"
        await self.upload(digest_of(empty), empty)
        content: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(empty), "size": len(empty)},
            "layers": [],
            "annotations": {"dev.mayfly.deleted": tag},
        }
        return json.dumps(content).encode()

    # Tags

    async def tags(self) -> list[str]:
        """Return all tags, none where there is no such repository."""
        found: list[str] = []
        target = f"{self._path('tags', 'list')}?n={_TAGS_A_PAGE}"
        while target:

            async def ask(page: str = target) -> tuple[list[str], str]:
                async with self._transport.request("GET", page, scope=self._pull) as response:
                    answer = cast("dict[str, Any]", json.loads(await response.text()))
                    following = response.links.get("next")
                    return list(answer.get("tags") or []), str(
                        following["url"]
                    ) if following else ""

            try:
                page, target = await self._transport.retrying(ask, self._say)
            except NotFound:
                return found
            found += page
        return found

    def _path(self, what: str, reference: str) -> str:
        return f"/v2/{self.name}/{what}/{reference}"


def digest_of(content: bytes) -> str:
    """Return the digest of a content. Example: "sha256:e3b0c4..."."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
