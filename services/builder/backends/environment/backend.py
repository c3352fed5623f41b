"""The backend of one machine: a source becomes a directory, and an environment where needed."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, Runtime, ScriptSettings
from mayfly.v1.source_pb2 import Stage

from services.builder.backends.base import Kind, Order, Progress, Step
from services.builder.backends.environment import (
    archive,
    interpreters,
    pep723,
    project,
    requirements,
    script_settings,
)
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.check import check
from services.builder.backends.environment.environments import Environments, complete
from services.builder.backends.environment.go import EXAMPLE as GO_EXAMPLE
from services.builder.backends.environment.go import PROGRAM, SOURCE, Go
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.pep723 import Metadata
from services.builder.backends.environment.requirements import Requested
from services.builder.backends.environment.threads import in_thread
from services.builder.failures import BuildFailed

HANDLER, SCRIPT = "handler.py", "script.py"
PYTHON_EXAMPLE = """def handler(event, ctx):
    return {"hi": event["query"].get("name")}
"""
_PYTHON_KINDS: tuple[Kind, ...] = ("handler", "script", "archive")
_GO_KINDS: tuple[Kind, ...] = ("handler", "archive")
PLATFORM = sysconfig.get_platform()


@dataclass(frozen=True)
class _Read:
    """A Python source that has been read: its files are in the workspace."""

    entry: str
    is_handler: bool
    metadata: Metadata | None
    requested: Requested | None
    size: int


class EnvironmentBackend:
    """Python with uv, Go with the toolchain of this machine."""

    def __init__(
        self,
        found: Interpreters,
        environments: Environments,
        go: Go,
        limits: Limits,
        fingerprint: str,
    ) -> None:
        """`fingerprint` is what the operator's settings decide of a Python artefact."""
        self._interpreters = found
        self._environments = environments
        self._go = go
        self._limits = limits
        self._fingerprint = fingerprint

    def supports(self, runtime: str, kind: Kind) -> bool:
        """See `Backend.supports`."""
        return kind in {"python": _PYTHON_KINDS, "go": _GO_KINDS}.get(runtime, ())

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
                example=PYTHON_EXAMPLE,
                sources=_PYTHON_KINDS,
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

    async def _build_python(self, order: Order, progress: Progress) -> Artefact:
        with progress.step(Stage.STAGE_CHECK) as step:
            read = await self._read_python(order, step)
        with progress.step(Stage.STAGE_BUILD) as step:
            source = (order.files / read.entry).read_bytes()
            metadata = read.metadata
            if metadata is None and order.kind != "archive":
                metadata = _metadata(source, order.kind)
            requested = read.requested or _requested(metadata)
            settings = script_settings.read(metadata) if metadata else ScriptSettings()
            for note in requested.notes:
                progress.log(note)
            line = metadata.line if metadata else 0
            interpreter = await self._interpreters.choose(
                requested.requires_python, progress.log, line
            )
            await check(
                source, order.files / read.entry, interpreter, wants_handler=read.is_handler
            )
            environment = await self._environments.get(order, requested, interpreter, progress)
            step.detail(
                f"environment {environment.digest[:6]}, {environment.said}"
                if environment
                else "no requirements"
            )
            publish(order, order.files)
        kind = Artefact.KIND_PYTHON_HANDLER if read.is_handler else Artefact.KIND_SCRIPT
        return Artefact(
            kind=kind,
            directory=str(order.directory),
            entry=read.entry,
            interpreter=interpreter.path,
            environment=str(environment.directory) if environment else "",
            environment_digest=environment.digest if environment else "",
            settings=settings,
            size_bytes=read.size,
        )

    async def _read_python(self, order: Order, step: Step) -> _Read:
        if order.kind == "archive":
            size = await in_thread(archive.unpack, order.source, order.files, self._limits)
            found = await in_thread(project.read, order.files)
            step.detail(f"archive, {found.entry}")
            return _Read(found.entry, found.is_handler, found.metadata, found.requested, size)
        is_handler = order.kind == "handler"
        entry = HANDLER if is_handler else SCRIPT
        write(order.files, entry, order.source)
        lines = order.source.count(b"\n") + (not order.source.endswith(b"\n"))
        step.detail(f"{order.kind}, {lines} line{'s' if lines != 1 else ''}")
        return _Read(entry, is_handler, None, None, len(order.source))

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


def _metadata(source: bytes, kind: Kind) -> Metadata | None:
    read: Callable[[str], Metadata | None] = (
        pep723.read_script if kind == "script" else pep723.read_optional
    )
    return read(source.decode("utf-8-sig"))


def _requested(metadata: Metadata | None) -> Requested:
    return requirements.from_metadata(metadata) if metadata else Requested()


def write(directory: Path, name: str, content: bytes) -> None:
    """Write a directory of one file, readable to everybody."""
    directory.mkdir()
    directory.chmod(0o755)
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o644)


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
