"""An image's way into the registry: what is there is mounted, what is not is uploaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from libs.registry import NotFound, RegistryError, Repository, digest_of
from services.builder.backends.layers.base import BaseImages, missing
from services.builder.backends.layers.image import Base, Descriptor, Image

_AT_ONCE = 4
_TRIES = 5


@dataclass(frozen=True)
class Own:
    """A blob of ours: its content, or the repository of the same registry that has it.

    `is_shared`: other images have it too; else it is most likely new, and uploaded unseen.
    """

    digest: str
    content: bytes | Path | None = None
    mounted_from: Repository | None = None
    is_shared: bool = False


class Pusher:
    """Pushes images into one repository."""

    def __init__(self, repository: Repository, bases: BaseImages) -> None:
        self._repository = repository
        self._bases = bases
        # Base and runtime layers, which every image has: looked for once.
        self._there: set[str] = set()

    async def push(
        self, image: Image, tag: str, base: Base, layers: list[Own], say: Callable[[str], None]
    ) -> None:
        """Push; the tag is there when this returns. Raises `BuildFailed`, `RegistryError`."""
        repository = self._repository.telling(say)
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_of_blobs),
            wait=wait_exponential_jitter(multiplier=0.1, jitter=0.2),
            stop=stop_after_attempt(_TRIES),
            before_sleep=lambda _: self._there.clear(),
            reraise=True,
        )
        await retrying(self._once, repository, image, tag, base, layers)

    async def _once(
        self, repository: Repository, image: Image, tag: str, base: Base, layers: list[Own]
    ) -> None:
        room = asyncio.Semaphore(_AT_ONCE)

        async def bounded(layer: Descriptor | Own) -> None:
            async with room:
                if isinstance(layer, Own):
                    await self._own(repository, layer)
                else:
                    await self._of_base(repository, layer, base)

        config = Own(digest_of(image.config), image.config)
        wanted = [each for each in base.layers if each.digest not in self._there]
        tasks = [asyncio.create_task(bounded(each)) for each in (*wanted, *layers, config)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await repository.put_manifest(tag, image.manifest)
        self._there.update(layer.digest for layer in base.layers)
        self._there.update(layer.digest for layer in layers if layer.is_shared)

    async def _of_base(self, repository: Repository, layer: Descriptor, base: Base) -> None:
        source = self._bases.repository
        if repository.full_name.partition("/")[0] == self._bases.host and await repository.mount(
            layer.digest, source.name
        ):
            return
        try:
            await repository.upload_from(layer.digest, layer.size, source)
        except NotFound as error:
            raise missing(base.name, error) from error

    async def _own(self, repository: Repository, layer: Own) -> None:
        if layer.digest in self._there:
            return
        if layer.content is not None:
            await repository.upload(layer.digest, layer.content, is_new=not layer.is_shared)
        elif layer.mounted_from is not None and not await repository.mount(
            layer.digest, layer.mounted_from.name
        ):
            raise RegistryError(f"BLOB_UNKNOWN: {layer.digest} of {layer.mounted_from.name}")


def _is_of_blobs(error: BaseException) -> bool:
    """Whether a registry lacks blobs that it had: it was cleaned up, or another push of the same
    blob to the same repository is being written down right now (DIGEST_INVALID of a manifest).
    """
    return isinstance(error, RegistryError) and any(
        code in str(error) for code in ("BLOB_UNKNOWN", "DIGEST_INVALID")
    )
