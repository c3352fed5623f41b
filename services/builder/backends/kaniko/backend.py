"""The backend of images that a Kaniko pod builds: Go, archives with a Dockerfile, and Python with
source distributions."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import structlog
from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

from libs.blobs import Bucket, Location
from libs.kube.cluster import Cluster
from libs.kube.errors import KubeError
from libs.kube.kinds import SECRET as SECRET_KIND
from services.builder.backends.base import IMAGE, Kind, Made, Order, Progress, Thing, World
from services.builder.backends.environment import go
from services.builder.backends.images import FunctionImages
from services.builder.backends.kaniko import failures
from services.builder.backends.kaniko.leavings import Leavings
from services.builder.backends.kaniko.pods import Place
from services.builder.backends.kaniko.recipes import (
    DOCKERFILE,
    Recipe,
    Recipes,
    unavailable,
    why_unavailable,
)
from services.builder.backends.kaniko.tries import Tries
from services.builder.backends.python_source import EXAMPLE
from services.builder.failures import BuildFailed

log = structlog.get_logger()

_KINDS: dict[str, tuple[Kind, ...]] = {
    "go": ("handler", "archive"),
    "python": ("handler", "script", "archive"),
}
_EXAMPLES = {"go": go.EXAMPLE, "python": EXAMPLE}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Kept of a build's time, so that it ends with its own reason and not by the worker's limit.
_MARGIN_SECONDS = 4.0
# For removing what a build has left: within that margin, and when there is time.
_LEAVE_SECONDS, _MOST_LEAVE_SECONDS = 2.0, 20.0


class KanikoBackend:
    """Has images built in the cluster, one pod a build."""

    name = "kaniko"

    def __init__(
        self,
        cluster: Cluster,
        bucket: Bucket,
        images: FunctionImages,
        recipes: Recipes,
        place: Place,
        *,
        prefix: str = "",
        pods_location: Location | None = None,
        build_seconds: float = 600.0,
        room_seconds: float = 30.0,
    ) -> None:
        """`prefix` is what keys in the bucket begin with. `pods_location` is the bucket as pods
        reach it, with the keys that they get: a source's own steps can read those. Without it they
        get the builder's. `room_seconds` is how long a pod may wait for a node or for quota.
        """
        self._cluster = cluster
        self._bucket = bucket
        self._images = images
        self._recipes = recipes
        self._place = place
        self._location = pods_location or bucket.location
        self._build_seconds = build_seconds
        self._room_seconds = room_seconds
        self._leavings = Leavings(cluster, bucket, place, prefix)

    def supports(self, runtime: str, kind: Kind) -> bool:
        """See `Backend.supports`."""
        return kind in _KINDS.get(runtime, ())

    async def runtimes(self) -> Sequence[Runtime]:
        """See `Backend.runtimes`."""
        images = self._recipes.images
        versions = {"python": images.python, "go": ""}
        return [
            Runtime(
                name=name,
                available=not (why := why_unavailable(name, images)),
                unavailable_reason=why,
                versions=[versions[name]] if versions[name] and not why else [],
                example=_EXAMPLES[name],
                sources=kinds,
            )
            for name, kinds in _KINDS.items()
        ]

    async def fingerprint(self, runtime: str) -> str:
        """See `Backend.fingerprint`."""
        images = self._recipes.images
        of = (images.go, images.go_base) if runtime == "go" else (images.base, images.python)
        template = await asyncio.to_thread(_digest, self._recipes.runtimes / runtime)
        return " ".join((self._place.registry, *of, template))

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """See `Backend.build`."""
        deadline = asyncio.get_running_loop().time() + self._build_seconds - _MARGIN_SECONDS
        with progress.step(Stage.STAGE_CHECK) as step:
            placed = await self._recipes.placed(order)
            step.detail(placed.said)
        if placed.entry and why_unavailable(order.runtime, self._recipes.images):
            raise unavailable(order.runtime, self._recipes.images)
        with progress.step(Stage.STAGE_BUILD) as step:
            index = await self._index()
            recipe = await self._recipes.of(order, placed, index, progress)
            digest = await self._push(order, recipe, index, progress, deadline)
            step.detail(f"{recipe.said}, image {digest.removeprefix('sha256:')[:6]}")
        return Artefact(
            kind=recipe.kind,
            entry=recipe.entry,
            image=f"{self._place.repository}@{digest}",
            settings=recipe.settings,
            size_bytes=recipe.size,
        )

    async def present(self, artefact: Artefact) -> bool:
        """See `Backend.present`."""
        return await self._images.present(artefact)

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        """See `Backend.lost`."""
        return await self._images.lost(builds)

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """See `Backend.remove`."""
        failed = await self._leavings.remove_builds([(made.id, made.uid) for made in builds])
        return failed | await self._images.remove(builds)

    async def look(self) -> World:
        """See `Backend.look`."""
        left, pushed = await asyncio.gather(self._leavings.look(), self._images.look())
        return World([*left.things, *pushed.things], [*left.looked_at, *pushed.looked_at])

    async def remove_thing(self, thing: Thing) -> str:
        """See `Backend.remove_thing`."""
        if thing.type == IMAGE:
            return await self._images.remove_thing(thing)
        return await self._leavings.remove_thing(thing)

    async def _push(
        self,
        order: Order,
        recipe: Recipe,
        index: Sequence[str],
        progress: Progress,
        deadline: float,
    ) -> str:
        images = self._recipes.images
        tries = Tries(
            self._cluster,
            self._bucket,
            self._location,
            self._images,
            self._place,
            deadline,
            self._room_seconds,
        )
        key = self._leavings.key(order.id, order.uid)
        bases = [image for image in (images.base, images.go, images.go_base) if image]
        try:
            return await tries.until_pushed(order, recipe, key, index, bases, progress)
        finally:
            left = deadline - asyncio.get_running_loop().time()
            await self._leave(order, max(_LEAVE_SECONDS, min(_MOST_LEAVE_SECONDS, left)))

    async def _leave(self, order: Order, seconds: float) -> None:
        """Remove pods, Secrets and the context, even while the build is being cancelled.

        What does not answer within `seconds` does not hold up the build's end.
        """

        async def remove() -> str:
            try:
                async with asyncio.timeout(seconds):
                    return await self._leavings.remove_build(order.id, order.uid)
            except TimeoutError:
                return f"no answer within {seconds:.0f} s"

        removing = asyncio.ensure_future(remove())
        try:
            why = await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait([removing])
            raise
        if why:
            # The sweep finds it.
            log.warning("build_not_cleaned_up", build=order.id, why=why)

    async def _index(self) -> list[str]:
        """Return the names of the variables of package indexes."""
        if not self._place.index_secret:
            return []
        try:
            secret = await self._cluster.get(
                SECRET_KIND, self._place.namespace, self._place.index_secret
            )
        except KubeError as error:
            outcome = failures.of_cluster(error)
            if isinstance(outcome, failures.Failed | failures.Passing):
                raise outcome.failure from error
            raise failures.not_started(str(error)) from error
        if secret is None:
            raise BuildFailed(
                "BUILD_NOT_STARTED",
                f"there is no Secret {self._place.index_secret} in {self._place.namespace}",
                "ask the operator to make it, or to leave MAYFLY_INDEX_SECRET empty",
            )
        data = cast("dict[str, str]", secret.get("data") or {})
        return sorted(name for name in data if _VARIABLE.fullmatch(name))


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), folder / DOCKERFILE, *folder.glob("template/*")]):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
