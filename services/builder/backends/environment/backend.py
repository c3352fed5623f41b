"""The backend of one machine: a source becomes a directory, and an environment where needed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

from services.builder.backends import python_source
from services.builder.backends.base import (
    ARTEFACT,
    ENVIRONMENT,
    Kind,
    Made,
    Order,
    Progress,
    Thing,
    World,
)
from services.builder.backends.environment import archive, interpreters
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.check import check
from services.builder.backends.environment.environments import Environments, complete
from services.builder.backends.environment.go import EXAMPLE as GO_EXAMPLE
from services.builder.backends.environment.go import PROGRAM, SOURCE, Go
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.python_source import EXAMPLE, KINDS, write
from services.builder.directories import Directories, names, remove
from services.builder.failures import BuildFailed

_GO_KINDS: tuple[Kind, ...] = ("handler", "archive")
PLATFORM = sysconfig.get_platform()


class EnvironmentBackend:
    """Python with uv, Go with the toolchain of this machine."""

    name = "environment"

    def __init__(
        self,
        directories: Directories,
        found: Interpreters,
        environments: Environments,
        go: Go,
        limits: Limits,
        fingerprint: str,
    ) -> None:
        """`fingerprint` is what the operator's settings decide of a Python artefact."""
        self._directories = directories
        self._interpreters = found
        self._environments = environments
        self._go = go
        self._limits = limits
        self._fingerprint = fingerprint

    def supports(self, runtime: str, kind: Kind) -> bool:
        """See `Backend.supports`."""
        return kind in {"python": KINDS, "go": _GO_KINDS}.get(runtime, ())

    async def runtimes(self) -> Sequence[Runtime]:
        """See `Backend.runtimes`."""
        found = await self._interpreters.found()
        version, why_not = await self._go.version()
        return [
            Runtime(
                name="go",
                available=not why_not,
                unavailable_reason=why_not,
                versions=[version] if version else [],
                example=GO_EXAMPLE,
                sources=_GO_KINDS,
            ),
            Runtime(
                name="python",
                available=True,
                versions=list(dict.fromkeys(each.version for each in found)),
                example=EXAMPLE,
                sources=KINDS,
            ),
        ]

    async def fingerprint(self, runtime: str) -> str:
        """See `Backend.fingerprint`."""
        if runtime == "go":
            return await self._go.fingerprint()
        return f"python {interpreters.own().identity} {self._fingerprint}"

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """See `Backend.build`."""
        if order.runtime == "go":
            return await self._build_go(order, progress)
        return await self._build_python(order, progress)

    async def present(self, artefact: Artefact) -> bool:
        """See `Backend.present`."""
        return _present(artefact)

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        """See `Backend.lost`. Nothing here is an image."""
        return ()

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """See `Backend.remove`. Environments are shared, and have deadlines of their own."""
        return await asyncio.to_thread(self._remove, builds)

    async def look(self) -> World:
        """See `Backend.look`."""
        return await asyncio.to_thread(self._look)

    async def remove_thing(self, thing: Thing) -> str:
        """See `Backend.remove_thing`."""
        failed = await asyncio.to_thread(remove, [Path(thing.id)])
        return "; ".join(failed.values())

    def _remove(self, builds: Sequence[Made]) -> dict[str, str]:
        failed: dict[str, str] = {}
        for build in builds:
            for why in remove([self._directories.artefact(build.id, build.uid)]).values():
                failed[build.uid] = why
        return failed

    def _look(self) -> World:
        things: list[Thing] = []
        looked_at: list[str] = []
        for type_, label, directory in (
            (ARTEFACT, "artefacts", self._directories.artefacts),
            (ENVIRONMENT, "environments", self._directories.environments),
        ):
            found = [_thing(type_, directory, name) for name in names(directory)]
            things += found
            looked_at.append(f"{label} ({len(found)})")
        return World(things, looked_at)

    async def _build_python(self, order: Order, progress: Progress) -> Artefact:
        with progress.step(Stage.STAGE_CHECK) as step:
            placed = await python_source.place(order, self._limits)
            step.detail(placed.said)
        with progress.step(Stage.STAGE_BUILD) as step:
            read = python_source.read(order, placed)
            for note in read.requested.notes:
                progress.log(note)
            interpreter = await self._interpreters.choose(
                read.requested.requires_python, progress.log, read.line
            )
            await check(
                read.source, order.files / read.entry, interpreter, wants_handler=read.is_handler
            )
            environment = await self._environments.get(order, read.requested, interpreter, progress)
            step.detail(
                f"environment {environment.digest[:6]}, {environment.said}"
                if environment
                else "no requirements"
            )
            publish(order, order.files)
        return Artefact(
            kind=read.kind,
            directory=str(order.directory),
            entry=read.entry,
            interpreter=interpreter.path,
            environment=str(environment.directory) if environment else "",
            environment_digest=environment.digest if environment else "",
            settings=read.settings,
            size_bytes=read.size,
        )

    async def _build_go(self, order: Order, progress: Progress) -> Artefact:
        with progress.step(Stage.STAGE_CHECK) as step:
            if order.kind == "archive":
                await in_thread(archive.unpack, order.source, order.files, self._limits)
                _refuse_without_go(order.files)
            else:
                write(order.files, SOURCE, order.source)
            step.detail(f"{order.kind}, {len(order.source)} bytes")
        with progress.step(Stage.STAGE_BUILD) as step:
            await self._go.compile(order, order.files, progress)
            made = order.workspace / "program"
            size = await in_thread(_collect, order.workspace / PROGRAM, made)
            publish(order, made)
            version, _ = await self._go.version()
            step.detail(f"go {version}, {size / (1024 * 1024):.1f} MiB")
        return Artefact(
            kind=Artefact.KIND_GO_HANDLER,
            directory=str(order.directory),
            entry=PROGRAM,
            size_bytes=size,
        )


def _thing(type_: str, parent: Path, name: str) -> Thing:
    first, _, second = name.partition(".")
    return Thing(type_, str(parent / name), first, second.partition(".")[0])


def _present(artefact: Artefact) -> bool:
    if artefact.interpreter and not os.path.exists(artefact.interpreter):
        return False
    if artefact.environment and not complete(Path(artefact.environment)):
        return False
    return os.path.isfile(os.path.join(artefact.directory, artefact.entry))


def _refuse_without_go(files: Path) -> None:
    if not any(files.glob("*.go")):
        raise BuildFailed(
            "ARCHIVE_INVALID",
            "the archive holds no Go file at its top",
            "put the file with func Handle at its top, beside go.mod",
        )


def publish(order: Order, made: Path) -> None:
    """Move `made` to the artefact's place, and away what an earlier try left there."""
    try:
        made.rename(order.directory)
    except OSError:
        order.directory.rename(order.make_workspace() / "earlier")
        made.rename(order.directory)


def _collect(program: Path, directory: Path) -> int:
    directory.mkdir()
    directory.chmod(0o755)
    target = directory / PROGRAM
    shutil.move(program, target)
    target.chmod(0o755)
    return target.stat().st_size
