"""Several backends as one: who builds a source, and whose a thing is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import structlog
from mayfly.v1.build_pb2 import Artefact, Runtime

from services.builder.backends.base import (
    ARTEFACT,
    CONTEXT,
    ENVIRONMENT,
    IMAGE,
    POD,
    PROCESS,
    SECRET,
    WORKSPACE,
    Backend,
    Kind,
    Made,
    NotHere,
    Order,
    Progress,
    Thing,
    World,
)
from services.builder.backends.image import GivenImages
from services.builder.backends.local import Local
from services.builder.directories import remove
from services.builder.failures import BuildFailed, retry_after

log = structlog.get_logger()

_T = TypeVar("_T")

# Who can remove what, by the names of backends. Layers and Kaniko share a repository.
_KEEPERS: Mapping[str, Sequence[str]] = {
    ARTEFACT: ("environment",),
    ENVIRONMENT: ("environment", "layers"),
    IMAGE: ("layers", "kaniko"),
    CONTEXT: ("kaniko",),
    POD: ("kaniko",),
    SECRET: ("kaniko",),
}
_IMAGES = _KEEPERS[IMAGE]
_KANIKO = "kaniko"
# Backends wait long for what does not answer, as builds may; callers of these do not.
_ASK_SECONDS = 3.0
_REMOVE_SECONDS = 20.0


@dataclass(frozen=True)
class Choice:
    """Backends in the order in which they are asked; the first that can build a source does.

    `images` takes images that are built already, None where nothing runs them. `local` is what
    all backends leave on this machine while they work. `place_of` tells where the environment of
    a row is, by its digest and uid.
    """

    backends: Sequence[Backend]
    images: GivenImages | None
    local: Local
    place_of: Callable[[str, str], str]

    def supports(self, runtime: str, kind: Kind) -> bool:
        """Whether anybody builds this."""
        return bool(self._who(runtime, kind)) or (kind == "image" and self.images is not None)

    def way_out(self, runtime: str, kind: Kind) -> str:
        """What to do about a source that nobody here builds."""
        names = [backend.name for backend in self.backends]
        if kind == "image":
            return "images run where a cluster is the target; send source code here"
        if "environment" not in names and _KANIKO not in names:
            return _ask_for_kaniko(f"builds {runtime} from {kind} sources")
        return "send a handler or an archive"

    async def runtimes(self) -> list[Runtime]:
        """Return what can be built here, by anybody, by name."""
        found: dict[str, Runtime] = {}
        for backend in self.backends:
            for runtime in await backend.runtimes():
                found[runtime.name] = _both(found.get(runtime.name), runtime)
        if self.images is not None:
            # An image is of no runtime, and one is always named.
            also = Runtime(sources=["image"])
            found = {name: _both(runtime, also) for name, runtime in found.items()}
        return [found[name] for name in sorted(found)]

    async def settled(self, kind: Kind, source: bytes) -> bytes:
        """Return the source as its build is known by: of an image, that with its digest.

        Raises `BuildFailed` for an image that is refused.
        """
        if kind == "image" and self.images is not None:
            return await self.images.pinned(source)
        return source

    async def fingerprint(self, runtime: str, kind: Kind) -> str:
        """Return what decides an artefact besides its source: who may build it, and with what.

        Raises `BuildFailed` when it cannot be built, such as without a toolchain.
        """
        if kind == "image":
            return "image"
        parts: list[str] = []
        for backend in self._who(runtime, kind):
            # The build itself waits for what does not answer, and tells of it.
            said = "not known"
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    said = await backend.fingerprint(runtime)
            except TimeoutError:
                log.warning("fingerprint_not_known", backend=backend.name)
            except BuildFailed as error:
                if retry_after(error.reason) != timedelta(0):
                    raise
                log.warning("fingerprint_not_known", backend=backend.name, why=error.message)
            parts.append(f"{backend.name} {said}")
        return "\n".join(parts)

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """Have the artefact made by the first that can. Raises `BuildFailed`."""
        if order.kind == "image" and self.images is not None:
            return await self.images.build(order, progress)
        reasons: list[str] = []
        for backend in self._who(order.runtime, order.kind):
            if reasons:
                progress.log(f"{backend.name} goes on: {reasons[-1]}")
                await self._clear(order)
            try:
                return await backend.build(order, progress)
            except NotHere as error:
                reasons.append(error.message)
        raise BuildFailed(
            "SOURCE_UNSUPPORTED",
            "; ".join(reasons) or f"nobody here builds {order.kind} sources for {order.runtime}",
            self._way_on(),
        )

    async def present(self, artefact: Artefact) -> bool:
        """Whether all that an artefact needs is still there."""
        if artefact.image:
            if not self._is_ours(artefact):
                return True
            keepers = self._named(_IMAGES)[:1]
        elif artefact.directory:
            keepers = self._named(_KEEPERS[ARTEFACT])
        else:
            keepers = self._named(("bundle",))
        # What nobody here keeps has been made under other settings, and is made anew.
        if not keepers:
            return False
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return await keepers[0].present(artefact)
        except (BuildFailed, TimeoutError) as error:
            # Most likely it is there; whoever starts it finds out.
            log.warning("artefact_not_looked_at", image=artefact.image, why=str(error))
            return True

    async def lost(self, builds: Sequence[Made]) -> frozenset[str]:
        """Return the uids of builds whose images somebody else has removed; of many, some.

        Raises `BuildFailed` where that cannot be seen.
        """
        ours = [
            build
            for build in builds
            if build.artefact is not None and build.artefact.image and self._is_ours(build.artefact)
        ]
        keepers = self._named(_IMAGES)[:1]
        if not ours or not keepers:
            return frozenset()
        return frozenset(await _seen(keepers[0], keepers[0].lost(ours)))

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """Remove all that builds made or left; by uid, why something could not be."""
        failed = await self.local.remove([build.uid for build in builds])
        # One after the other: where two keep the same repository, the second finds it done.
        for backend in self.backends:
            wanted = [build for build in builds if self._keeps(backend, build)]
            if wanted:
                failed |= await _removed(backend, wanted)
        return failed

    async def look(self) -> World:
        """Look at all that builds left anywhere. Raises `BuildFailed` where it cannot be seen."""
        worlds = [await _seen(backend, backend.look()) for backend in self.backends]
        worlds.append(await self.local.look())
        things = {(thing.type, thing.id): thing for world in worlds for thing in world.things}
        looked_at = dict.fromkeys(said for world in worlds for said in world.looked_at)
        return World(list(things.values()), list(looked_at))

    async def remove_thing(self, thing: Thing) -> str:
        """Remove an orphan; return why it could not be, "" when it is gone."""
        if thing.type in (WORKSPACE, PROCESS):
            return await self.local.remove_thing(thing)
        keepers = self._named(_KEEPERS.get(thing.type, ()))
        if not keepers:
            return f"no backend here removes things of type {thing.type}"
        try:
            async with asyncio.timeout(_REMOVE_SECONDS):
                return await keepers[0].remove_thing(thing)
        except BuildFailed as error:
            return error.message
        except TimeoutError:
            return _no_answer(keepers[0])

    def environment_of(self, digest: str, uid: str) -> Thing:
        """Return the environment of a row as a thing."""
        return Thing(ENVIRONMENT, self.place_of(digest, uid), digest, uid)

    def thing_of(self, build: Made) -> Thing | None:
        """Return what a build made as a thing; None where nothing of it is ours to remove."""
        artefact = build.artefact
        if artefact is None or not artefact.image:
            directory = artefact.directory if artefact else ""
            return Thing(ARTEFACT, directory or f"builds/{build.id}", build.id, build.uid)
        if not self._is_ours(artefact):
            return None
        return Thing(IMAGE, artefact.image, build.id, build.uid)

    def _who(self, runtime: str, kind: Kind) -> list[Backend]:
        return [backend for backend in self.backends if backend.supports(runtime, kind)]

    def _named(self, names: Sequence[str]) -> list[Backend]:
        return [backend for backend in self.backends if backend.name in names]

    def _is_ours(self, artefact: Artefact) -> bool:
        """Whether an image was made here, and not given by somebody."""
        return self.images is None or self.images.is_ours(artefact.image)

    def _keeps(self, backend: Backend, build: Made) -> bool:
        """Whether a backend removes what a build made or left."""
        if build.artefact is None:
            return True  # it ended early: whoever began it may have left things
        if build.artefact.image:
            # What built it left nothing else, or the sweep finds it.
            return self._is_ours(build.artefact) and backend in self._named(_IMAGES)[:1]
        return backend.name not in _IMAGES

    def _way_on(self) -> str:
        if self._named((_KANIKO,)):
            return "require versions that have wheels, or send an archive with a Dockerfile"
        return _ask_for_kaniko("builds in a pod of its own")

    async def _clear(self, order: Order) -> None:
        """Remove what the backend before has placed."""
        failed = await asyncio.to_thread(remove, [order.files, order.workspace])
        if failed:
            raise OSError("; ".join(failed.values()))


async def _seen(backend: Backend, looking: Awaitable[_T]) -> _T:
    try:
        async with asyncio.timeout(_REMOVE_SECONDS):
            return await looking
    except TimeoutError as error:
        raise BuildFailed("UNAVAILABLE", _no_answer(backend), "try again") from error


async def _removed(backend: Backend, builds: Sequence[Made]) -> dict[str, str]:
    try:
        async with asyncio.timeout(_REMOVE_SECONDS):
            return await backend.remove(builds)
    except TimeoutError:
        return dict.fromkeys((build.uid for build in builds), _no_answer(backend))
    except Exception as error:
        # Not the end of the others' removal; the rows stay, and it is tried again.
        log.error("builds_not_removed", backend=backend.name, exc_info=error)
        return {build.uid: f"{backend.name}: {error}" for build in builds}


def _no_answer(backend: Backend) -> str:
    return f"what {backend.name} needs did not answer within {_REMOVE_SECONDS:.0f} s"


def _ask_for_kaniko(what: str) -> str:
    return f"ask the operator to add `kaniko` to MAYFLY_BUILD_BACKENDS, which {what}"


def _both(one: Runtime | None, other: Runtime) -> Runtime:
    """A runtime as two backends have it, the first named first."""
    if one is None:
        return other
    available = one.available or other.available
    return Runtime(
        name=one.name,
        available=available,
        unavailable_reason="" if available else one.unavailable_reason,
        versions=list(dict.fromkeys([*one.versions, *other.versions])),
        example=one.example or other.example,
        sources=list(dict.fromkeys([*one.sources, *other.sources])),
    )
