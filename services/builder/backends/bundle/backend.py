"""The backend that makes no image: a source becomes a small archive and a lock file."""

from __future__ import annotations

from collections.abc import Sequence

from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

from services.builder.backends import python_source
from services.builder.backends.base import Kind, Made, Order, Progress, Thing, World
from services.builder.backends.bundle.packing import pack
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.environment.uv import Target
from services.builder.backends.locks import Locks
from services.builder.failures import BuildFailed

# A ConfigMap holds at most 1 MiB (https://kubernetes.io/docs/concepts/configuration/configmap/),
# the function's files, its lock file and the object's own fields together.
MOST_BUNDLE_BYTES = 900 * 1024
MOST_BYTES = 1000 * 1024


class BundleBackend:
    """Python handlers, scripts and archives whose requirements all have wheels."""

    name = "bundle"

    def __init__(self, target: Target, found: Interpreters, locks: Locks, limits: Limits) -> None:
        """`target` is the Python that functions run in."""
        self._target = target
        self._interpreters = found
        self._locks = locks
        self._limits = limits

    def supports(self, runtime: str, kind: Kind) -> bool:
        """See `Backend.supports`."""
        return runtime == "python" and kind in python_source.KINDS

    async def runtimes(self) -> Sequence[Runtime]:
        """See `Backend.runtimes`."""
        return [
            Runtime(
                name="python",
                available=True,
                versions=[self._target.version],
                example=python_source.EXAMPLE,
                sources=python_source.KINDS,
            )
        ]

    async def fingerprint(self, runtime: str) -> str:
        """See `Backend.fingerprint`."""
        return f"python {self._target.version} {self._target.platform}"

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """See `Backend.build`. Raises `NotHere` for what needs an image."""
        with progress.step(Stage.STAGE_CHECK) as step:
            placed = await python_source.place_without_dockerfile(order, self._limits)
            step.detail(placed.said)
        with progress.step(Stage.STAGE_BUILD) as step:
            read = python_source.read(order, placed)
            for note in read.requested.notes:
                progress.log(note)
            version = self._target.version
            await python_source.check_for(
                read, order.files, version, self._interpreters, progress.log
            )
            lines = await self._locks.get(order, read.requested, self._target, progress)
            lock = "".join(f"{line}\n" for line in lines)
            bundle = await in_thread(pack, order.files)
            if problem := too_large(len(bundle), len(lock)):
                raise problem
            packages = f"{len(lines)} package{'s' if len(lines) != 1 else ''} locked"
            step.detail(packages if lines else "no requirements")
        return Artefact(
            kind=read.kind,
            entry=read.entry,
            settings=read.settings,
            size_bytes=read.size,
            bundle=bundle,
            lock=lock,
            python_version=version,
        )

    async def present(self, artefact: Artefact) -> bool:
        """See `Backend.present`. It is kept with the build's row, and goes with it."""
        return bool(artefact.python_version)

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        """See `Backend.lost`. Nothing here is an image."""
        return ()

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """See `Backend.remove`. There is nothing besides rows."""
        return {}

    async def look(self) -> World:
        """See `Backend.look`. There is nothing besides rows."""
        return World([], [])

    async def remove_thing(self, thing: Thing) -> str:
        """See `Backend.remove_thing`."""
        return f"the backend bundle makes no things of type {thing.type}"


def too_large(bundle: int, lock: int) -> BuildFailed | None:
    """Return what is wrong with a bundle and a lock file of these sizes, None where nothing is."""
    if bundle <= MOST_BUNDLE_BYTES and bundle + lock <= MOST_BYTES:
        return None
    return BuildFailed(
        "SOURCE_TOO_LARGE",
        f"the function's files have {bundle} bytes compressed and its lock file {lock}; a function "
        f"without an image is kept in a ConfigMap, which takes {MOST_BUNDLE_BYTES // 1024} KiB of "
        f"files, and {MOST_BYTES // 1024} KiB with the lock file",
        "make it smaller, or have it run from an image: as `image`, as an archive with a "
        "Dockerfile, or where the operator has chosen the driver knative",
    )
