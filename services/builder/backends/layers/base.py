"""The base image: read from its registry, looked into once for each digest."""

from __future__ import annotations

import asyncio
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from libs.registry import NotFound, Reference, RegistryError, Repository
from libs.registry.repository import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.layers import interpreter
from services.builder.backends.layers.image import Base, Descriptor
from services.builder.backends.layers.interpreter import ImagePython
from services.builder.failures import BuildFailed

# A tag is asked for its digest again after this time, in seconds.
_AGAIN_SECONDS = 30.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# The same content under two names (image-spec, "Compatibility Matrix").
_LAYER_TYPES = {"application/vnd.docker.image.rootfs.diff.tar.gzip": OCI_LAYER}


@dataclass(frozen=True)
class PythonBase:
    """A base image and its Python."""

    image: Base
    python: ImagePython


class BaseImages:
    """Reads one base image, which a tag may move."""

    def __init__(self, reference: Reference, repository: Repository, machine: str) -> None:
        """`repository` is the image's; `machine` chooses in an index. Example: "x86_64"."""
        self._reference = reference
        self.repository = repository
        self._architecture = _ARCHITECTURES.get(machine, machine)
        self._digest = ""
        self._until = 0.0
        self._read: dict[str, PythonBase] = {}
        self._lock = asyncio.Lock()

    @property
    def host(self) -> str:
        """The registry that has it."""
        return self._reference.host

    @property
    def known(self) -> PythonBase | None:
        """What was found last, None before."""
        return self._read.get(self._digest)

    async def digest(self, tell: Callable[[str], None] | None = None) -> str:
        """Return the digest of the image as it is now. Raises `BuildFailed`, `RegistryError`."""
        repository = self.repository.telling(tell) if tell else self.repository
        now = asyncio.get_running_loop().time()
        if not self._digest or now >= self._until:
            digest = await repository.manifest_digest(self._reference.reference)
            if digest is None:
                raise self._missing()
            self._digest = digest
            self._until = now + _AGAIN_SECONDS
        return self._digest

    async def get(
        self, workspace: Path, say: Callable[[str], None], tell: Callable[[str], None]
    ) -> PythonBase:
        """Return the image; `workspace` takes a layer while it is looked into.

        `tell` gets a line each time the registry has to be asked again.

        Raises `BuildFailed`, `RegistryError`.
        """
        digest = await self.digest(tell)
        async with self._lock:
            if digest not in self._read:
                say(f"looking into the base image {self._reference.name}")
                self._read[digest] = await self._look(
                    digest, workspace, self.repository.telling(tell)
                )
            return self._read[digest]

    async def _look(self, digest: str, workspace: Path, repository: Repository) -> PythonBase:
        content = await self._manifest(digest, repository)
        layers = [_descriptor(each) for each in content["layers"]]
        config = _document(await repository.blob(content["config"]["digest"]))
        image = Base(self._reference.name, digest, layers, config)
        settings: dict[str, Any] = config.get("config") or {}
        pairs: list[str] = settings.get("Env") or []
        environ = interpreter.environ_of(pairs)
        # What lies above hides what is below.
        for layer in reversed(layers):
            programs = await self._programs(layer, workspace, repository)
            if python := interpreter.choose(programs, environ):
                return PythonBase(image, python)
        raise BuildFailed(
            "SOURCE_UNSUPPORTED",
            f"the base image {self._reference.name} has no python3 on its PATH",
            "ask the operator for a base image with Python (MAYFLY_BASE_IMAGE)",
        )

    async def _manifest(self, digest: str, repository: Repository) -> Mapping[str, Any]:
        manifest = await repository.manifest(digest)
        if manifest is None:
            raise self._missing()
        content = manifest.content
        kind = content.get("mediaType") or manifest.media_type
        if kind in (OCI_INDEX, DOCKER_LIST):
            for each in content["manifests"]:
                platform: dict[str, Any] = each.get("platform") or {}
                if (platform.get("os"), platform.get("architecture")) == (
                    "linux",
                    self._architecture,
                ):
                    return await self._manifest(each["digest"], repository)
            raise BuildFailed(
                "SOURCE_UNSUPPORTED",
                f"the base image {self._reference.name} has no variant for linux/"
                f"{self._architecture}",
                "ask the operator for another base image (MAYFLY_BASE_IMAGE)",
            )
        if kind not in (OCI_MANIFEST, DOCKER_MANIFEST):
            raise RegistryError(f"{self._reference.name} is a {kind} and no image")
        return content

    async def _programs(
        self, layer: Descriptor, workspace: Path, repository: Repository
    ) -> Mapping[str, str]:
        file = workspace / "layer"
        with await asyncio.to_thread(file.open, "wb") as sink:
            async with repository.open_blob(layer.digest) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(sink.write, chunk)
        try:
            return await in_thread(interpreter.programs_in, file)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise BuildFailed(
                "SOURCE_UNSUPPORTED",
                f"a layer of the base image {self._reference.name} cannot be read "
                f"({layer.media_type}): {error}",
                "ask the operator for a base image with gzip layers (MAYFLY_BASE_IMAGE)",
            ) from error
        finally:
            file.unlink()

    def _missing(self) -> BuildFailed:
        return BuildFailed(
            "BUILD_IMAGE_PULL_FAILED",
            f"there is no base image {self._reference.name}",
            "ask the operator to correct MAYFLY_BASE_IMAGE, or to push that image",
        )


def missing(name: str, error: NotFound) -> BuildFailed:
    """Return the failure of a base image whose repository or blob is gone."""
    return BuildFailed(
        "BUILD_IMAGE_PULL_FAILED",
        f"the base image {name} is not whole: {error}",
        "ask the operator to push that image again (MAYFLY_BASE_IMAGE)",
    )


def _document(raw: bytes) -> Mapping[str, Any]:
    return cast("dict[str, Any]", json.loads(raw))


def _descriptor(each: Mapping[str, Any]) -> Descriptor:
    kind = str(each["mediaType"])
    return Descriptor(str(each["digest"]), int(each["size"]), _LAYER_TYPES.get(kind, kind))
