"""The backend that makes images without a pod: wheels and source as layers upon a base image."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

from libs.registry import NotFound, RegistryError, Repository
from runtimes import container_files
from services.builder.backends import python_source
from services.builder.backends.base import (
    ENVIRONMENT,
    Kind,
    Made,
    Order,
    Progress,
    Thing,
    World,
)
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.environment.uv import Target
from services.builder.backends.images import FunctionImages, failure_of, tag_of
from services.builder.backends.layers import image, tarball
from services.builder.backends.layers.base import BaseImages, PythonBase, missing
from services.builder.backends.layers.environments import SharedEnvironments, SharedLayer
from services.builder.backends.layers.image import FUNCTION_ROOT, RUNTIME_ROOT, Program
from services.builder.backends.layers.pushing import Own, Pusher
from services.builder.backends.layers.tarball import Entry, Layer
from services.builder.backends.locks import Locks
from services.builder.backends.python_source import Read
from services.builder.failures import BuildFailed

# Raised by a change that makes images of older builders unfit.
_LAYOUT = "1"
# Kept of a build's time, so that it ends with its own reason and not by the worker's limit.
_MARGIN = timedelta(seconds=3)
# Longer than from one try to the next.
_AWAY_SECONDS = 15.0


class LayersBackend:
    """Python handlers, scripts and archives whose requirements all have wheels."""

    name = "layers"

    def __init__(
        self,
        repository: Repository,
        bases: BaseImages,
        environments: SharedEnvironments,
        locks: Locks,
        found: Interpreters,
        limits: Limits,
        *,
        platform: str,
        build_timeout: timedelta,
    ) -> None:
        """`repository` is that of functions' images; `platform` is what wheels are chosen for."""
        self._repository = repository
        self._images = FunctionImages(repository)
        self._bases = bases
        self._environments = environments
        self._locks = locks
        self._interpreters = found
        self._limits = limits
        self._platform = platform
        self._timeout = build_timeout
        self._pusher = Pusher(repository, bases)

    def supports(self, runtime: str, kind: Kind) -> bool:
        """See `Backend.supports`."""
        return runtime == "python" and kind in python_source.KINDS

    async def runtimes(self) -> Sequence[Runtime]:
        """See `Backend.runtimes`. Its version is known from the first build on."""
        known = self._bases.known
        return [
            Runtime(
                name="python",
                available=True,
                versions=[known.python.version] if known else [],
                example=python_source.EXAMPLE,
                sources=python_source.KINDS,
            )
        ]

    async def fingerprint(self, runtime: str) -> str:
        """See `Backend.fingerprint`."""
        try:
            digest = await self._bases.digest()
        except RegistryError as error:
            raise failure_of(error) from error
        own, _ = runtime_layer()
        return f"python {digest} {self._platform} {own.digest} {_LAYOUT}"

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """See `Backend.build`. Raises `NotHere` for what has no wheels, and for Dockerfiles."""
        away: list[tuple[float, str]] = []
        clock = asyncio.get_running_loop().time

        def tell(line: str) -> None:
            away.append((clock(), line))
            progress.log(line)

        limit = max(self._timeout - _MARGIN, self._timeout / 2)
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await self._build(order, progress, tell)
        except RegistryError as error:
            raise failure_of(error) from error
        except TimeoutError as error:
            # It is the registry's fault only where that was away to the end.
            if not away or clock() - away[-1][0] > _AWAY_SECONDS:
                raise
            raise BuildFailed(
                "REGISTRY_UNREACHABLE",
                f"{away[-1][1].removesuffix('; trying again')}; it was tried until the build's "
                f"deadline ({limit.total_seconds():.0f} s)",
                "try again; if it persists, ask the operator to check MAYFLY_REGISTRY",
            ) from error

    async def _build(
        self, order: Order, progress: Progress, tell: Callable[[str], None]
    ) -> Artefact:
        with progress.step(Stage.STAGE_CHECK) as step:
            placed = await python_source.place_without_dockerfile(order, self._limits)
            step.detail(placed.said)
        with progress.step(Stage.STAGE_BUILD) as step:
            read = python_source.read(order, placed)
            for note in read.requested.notes:
                progress.log(note)
            base = await self._base(order, progress, tell)
            version = base.python.version
            await python_source.check_for(
                read, order.files, version, self._interpreters, progress.log
            )
            target = Target(version, self._platform)
            lines = await self._locks.get(order, read.requested, target, progress)
            shared: SharedLayer | None = None
            if lines:
                shared = await self._environments.get(
                    order, lines, base.python, target, progress, tell
                )
            with progress.span("push"):
                digest = await self._push(order, read, base, shared, tell)
            step.detail(
                f"environment {shared.digest[:6]}, {shared.said}" if shared else "no requirements"
            )
        return Artefact(
            kind=read.kind,
            image=f"{self._repository.full_name}@{digest}",
            entry=read.entry,
            environment_digest=shared.digest if shared else "",
            settings=read.settings,
            size_bytes=read.size,
            python_version=version,
        )

    async def present(self, artefact: Artefact) -> bool:
        """See `Backend.present`."""
        return await self._images.present(artefact)

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        """See `Backend.lost`."""
        return await self._images.lost(builds)

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """See `Backend.remove`. Environments are shared, and have deadlines of their own."""
        return await self._images.remove(builds)

    async def look(self) -> World:
        """See `Backend.look`."""
        images = await self._images.look()
        try:
            found = await self._environments.look()
        except RegistryError as error:
            raise failure_of(error) from error
        looked_at = [*images.looked_at, f"environments ({len(found)})"]
        return World([*images.things, *found], looked_at)

    async def remove_thing(self, thing: Thing) -> str:
        """See `Backend.remove_thing`."""
        if thing.type != ENVIRONMENT:
            return await self._images.remove_thing(thing)
        try:
            await self._environments.remove(thing)
        except RegistryError as error:
            return str(error)
        return ""

    async def _base(
        self, order: Order, progress: Progress, tell: Callable[[str], None]
    ) -> PythonBase:
        try:
            return await self._bases.get(order.make_workspace(), progress.log, tell)
        except NotFound as error:
            raise missing(self._bases.host, error) from error

    async def _push(
        self,
        order: Order,
        read: Read,
        base: PythonBase,
        shared: SharedLayer | None,
        tell: Callable[[str], None],
    ) -> str:
        layers: list[Layer] = []
        own: list[Own] = []
        layer, content = runtime_layer()
        layers.append(layer)
        own.append(Own(layer.digest, content, is_shared=True))
        if shared is not None:
            layers.append(shared.layer)
            source = self._environments.repository
            own.append(Own(shared.layer.digest, mounted_from=source, is_shared=True))
        file = order.make_workspace() / "source.tar.gz"
        source_layer = await in_thread(_source_layer, order.files, file)
        layers.append(source_layer)
        own.append(Own(source_layer.digest, file))
        program = Program(
            base.python.path, read.entry, read.is_handler, environment=shared is not None
        )
        made = image.make(base.image, layers, program, order.id)
        await self._pusher.push(made, tag_of(order.id, order.uid), base.image, own, tell)
        return made.digest


@functools.cache
def runtime_layer() -> tuple[Layer, bytes]:
    """Return the layer with what runs handlers and scripts, which all share, and its content."""
    files = {**container_files.of_handlers(), **container_files.of_scripts()}
    return tarball.in_memory(
        [Entry(f"{RUNTIME_ROOT}/{path}", content=files[path]) for path in sorted(files)]
    )


def _source_layer(files: Path, file: Path) -> Layer:
    return tarball.to_file(tarball.tree(files, FUNCTION_ROOT), file)
