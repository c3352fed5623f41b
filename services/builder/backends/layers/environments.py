"""Layers of requirements by content: installed once, shared by all who require the same.

A layer is kept by a manifest of its own, one tag each, in a repository beside the functions'; the
row that says how long is the catalogue's, as for every environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.registry import NotFound, Repository
from libs.registry.repository import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of
from services.builder.backends.base import ENVIRONMENT, Order, Progress, Thing
from services.builder.backends.environment.catalog import Catalog
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.environment.uv import Target
from services.builder.backends.layers import tarball
from services.builder.backends.layers.image import ENVIRONMENT_ROOT
from services.builder.backends.layers.installing import Installer
from services.builder.backends.layers.interpreter import ImagePython
from services.builder.backends.layers.tarball import Entry, Layer
from services.builder.digest import environment_digest, resolution_key

# Raised by a change that makes layers of older builders unfit.
_LAYOUT = "layers 1"
_DIFF_ID = "dev.mayfly.diff-id"
_OF = "dev.mayfly.environment"


@dataclass(frozen=True)
class SharedLayer:
    """A layer of requirements. `said` is for a person. Example: "3 packages installed"."""

    digest: str
    layer: Layer
    said: str


class SharedEnvironments:
    """Makes layers of requirements."""

    def __init__(
        self, repository: Repository, catalog: Catalog, installer: Installer, at_once: int
    ) -> None:
        """`at_once` bounds how many are made at the same time."""
        self.repository = repository
        self._catalog = catalog
        self._installer = installer
        self._running = asyncio.Semaphore(at_once)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def get(
        self,
        order: Order,
        lines: Sequence[str],
        python: ImagePython,
        target: Target,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> SharedLayer:
        """Return the layer of these pinned lines, which is in the repository then.

        `tell` gets a line each time the registry has to be asked again.
        Raises `BuildFailed`, `ClaimLost`, `RegistryError`.
        """
        where = f"{python.version} {python.path} {_LAYOUT}"
        digest = environment_digest(interpreter=where, requirements=lines, platform=target.platform)
        row = await self._catalog.use(
            order.id,
            order.token,
            key=resolution_key(
                interpreter=where, requirements=lines, options=["made"], platform=target.platform
            ),
            digest=digest,
            uid=secrets.token_hex(8),
            interpreter=where,
            requirements=lines,
        )
        repository = self.repository.telling(tell)
        tag = tag_of(digest, row.uid)
        # One at a time for the same requirements: the second finds what the first has made.
        async with self._alone(tag):
            found = await _kept(repository, tag)
            if found is not None:
                return SharedLayer(digest, found, _shared(row.users))
            async with self._running:
                with progress.span("install", packages=len(lines)):
                    layer = await self._make(
                        repository, tag, order, lines, python, target, progress
                    )
        return SharedLayer(
            digest, layer, f"{len(lines)} package{'s' * (len(lines) != 1)} installed"
        )

    async def look(self) -> list[Thing]:
        """Return what is in the repository. Raises `RegistryError`."""
        return [self._thing(tag) for tag in await self.repository.tags()]

    async def remove(self, thing: Thing) -> None:
        """Remove a layer's manifest, wherever its thing comes from. Raises `RegistryError`."""
        here = f"{self.repository.full_name}:"
        named = thing.id.removeprefix(here) if thing.id.startswith(here) else ""
        tag = named or tag_of(thing.name, thing.uid)
        digest = await self.repository.manifest_digest(tag)
        if digest is not None:
            await self.repository.delete_manifest(digest)

    async def _make(
        self,
        repository: Repository,
        tag: str,
        order: Order,
        lines: Sequence[str],
        python: ImagePython,
        target: Target,
        progress: Progress,
    ) -> Layer:
        made = await self._installer.install(order, lines, python, target, progress)
        file = order.make_workspace() / "environment.tar.gz"
        layer = await in_thread(tarball.to_file, entries(made, python), file)
        await repository.upload(layer.digest, file)
        config = json.dumps(
            {
                "architecture": "unknown",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            }
        ).encode()
        await repository.upload(digest_of(config), config)
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER, "digest": layer.digest, "size": layer.size}],
            "annotations": {_DIFF_ID: layer.diff_id, _OF: tag},
        }
        await repository.put_manifest(tag, json.dumps(manifest).encode())
        return layer

    def _thing(self, tag: str) -> Thing:
        digest, _, uid = tag.partition("-")
        return Thing(ENVIRONMENT, f"{self.repository.full_name}:{tag}", digest, uid)

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncGenerator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)


def tag_of(digest: str, uid: str) -> str:
    """Return the tag of an environment's layer."""
    return f"{digest}-{uid}"


def entries(made: Path, python: ImagePython) -> list[Entry]:
    """Return an environment (PEP 405) around what was installed at `made`.

    `made` has the packages themselves, and their programs in `bin`.
    """
    root = ENVIRONMENT_ROOT
    home = os.path.dirname(python.path)
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {python.version}\n"
    found = [
        Entry(f"{root}/pyvenv.cfg", content=settings.encode()),
        Entry(f"{root}/bin/python", link=python.path),
        Entry(f"{root}/bin/python3", link="python"),
    ]
    for each in tarball.tree(made, site_of(python)):
        inside = each.path.removeprefix(f"{site_of(python)}/")
        if inside == "bin" or inside.startswith("bin/"):
            found.append(Entry(f"{root}/{inside}", each.content, each.file, each.link, True))
        else:
            found.append(each)
    # A directory "bin" is written as one whatever was said of it.
    return [Entry(each.path) if each.path == f"{root}/bin" else each for each in found]


def site_of(python: ImagePython) -> str:
    """Return where packages are, relative to the image's root."""
    return f"{ENVIRONMENT_ROOT}/lib/python{python.release}/site-packages"


async def _kept(repository: Repository, tag: str) -> Layer | None:
    manifest = await repository.manifest(tag)
    if manifest is None:
        return None
    content = manifest.content
    (described,) = content["layers"]
    # The manifest may have outlived its layer, by a registry's clean-up.
    try:
        there = await repository.blob_exists(described["digest"])
    except NotFound:
        there = False
    if not there:
        return None
    return Layer(described["digest"], content["annotations"][_DIFF_ID], described["size"])


def _shared(users: int) -> str:
    if not users:
        return "already there"
    return f"shared with {users} function{'s' if users > 1 else ''}"
