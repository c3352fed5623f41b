"""A Python source as every backend reads it: placed as files, read, and checked.

Three steps, so that a failure is told in the stage it belongs to: `place` (CHECK), then `read` and
`check_for` (BUILD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, ScriptSettings
from packaging.specifiers import SpecifierSet

from services.builder.backends.base import Kind, NotHere, Order
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
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.pep723 import Metadata
from services.builder.backends.environment.requirements import Requested
from services.builder.backends.environment.threads import in_thread
from services.builder.failures import BuildFailed

HANDLER, SCRIPT = "handler.py", "script.py"
_DOCKERFILE = "Dockerfile"
KINDS: tuple[Kind, ...] = ("handler", "script", "archive")
EXAMPLE = """def handler(event, ctx):
    return {"hi": event["query"].get("name")}
"""


@dataclass(frozen=True)
class Placed:
    """Files that stand in `Order.files`. `said` is for a person. Example: "handler, 2 lines"."""

    entry: str
    is_handler: bool
    size: int
    said: str
    metadata: Metadata | None = None
    requested: Requested | None = None


@dataclass(frozen=True)
class Read:
    """What a Python source says of itself. `entry` is relative to the function's files.

    `line` is that of its script block, 0 without one; `size` are bytes of all files.
    """

    entry: str
    is_handler: bool
    metadata: Metadata | None
    requested: Requested
    settings: ScriptSettings
    size: int
    source: bytes

    @property
    def line(self) -> int:
        """The line of the script block, 0 where there is none."""
        return self.metadata.line if self.metadata else 0

    @property
    def kind(self) -> Artefact.Kind.ValueType:
        """How the artefact is started."""
        return Artefact.KIND_PYTHON_HANDLER if self.is_handler else Artefact.KIND_SCRIPT


async def place_without_dockerfile(order: Order, limits: Limits) -> Placed:
    """Do what `place` does. Raises `NotHere` for an archive that says itself how it is built."""
    try:
        placed = await place(order, limits)
    except BuildFailed:
        _refuse_dockerfile(order.files)
        raise
    _refuse_dockerfile(order.files)
    return placed


def _refuse_dockerfile(files: Path) -> None:
    if (files / _DOCKERFILE).is_file():
        raise NotHere("the archive has a Dockerfile, and only `kaniko` builds those")


async def place(order: Order, limits: Limits) -> Placed:
    """Write a handler, a script or an archive as files to `order.files`. Raises `BuildFailed`."""
    if order.kind == "archive":
        size = await in_thread(archive.unpack, order.source, order.files, limits)
        found = await in_thread(project.read, order.files)
        said = f"archive, {found.entry}"
        return Placed(found.entry, found.is_handler, size, said, found.metadata, found.requested)
    is_handler = order.kind == "handler"
    entry = HANDLER if is_handler else SCRIPT
    write(order.files, entry, order.source)
    lines = order.source.count(b"\n") + (not order.source.endswith(b"\n"))
    said = f"{order.kind}, {lines} line{'s' if lines != 1 else ''}"
    return Placed(entry, is_handler, len(order.source), said)


def read(order: Order, placed: Placed) -> Read:
    """Return what the placed source requires and asks for. Raises `BuildFailed`."""
    source = (order.files / placed.entry).read_bytes()
    metadata = placed.metadata
    if metadata is None and order.kind != "archive":
        metadata = _metadata(source, order.kind)
    requested = placed.requested
    if requested is None:
        requested = requirements.from_metadata(metadata) if metadata else Requested()
    settings = script_settings.read(metadata) if metadata else ScriptSettings()
    return Read(placed.entry, placed.is_handler, metadata, requested, settings, placed.size, source)


async def check_for(
    read: Read, files: Path, version: str, found: Interpreters, say: Callable[[str], None]
) -> None:
    """Check a source that will run in Python `version` of some image, such as "3.13".

    Refuses what `requires-python` rules out, and source that does not compile: in an interpreter
    of that version where this machine has one, else in the platform's own, which is said. Raises
    `BuildFailed`.
    """
    require(read.requested, version, read.line)
    wanted = release(version)
    interpreter = next((each for each in await found.found() if each.release == wanted), None)
    if interpreter is None:
        interpreter = interpreters.own()
        say(
            f"the syntax is checked with Python {interpreter.version}, since the builder has no "
            f"{version}, in which the function runs"
        )
    await check(read.source, files / read.entry, interpreter, wants_handler=read.is_handler)


def require(requested: Requested, version: str, line: int = 0) -> None:
    """Raise `BuildFailed` where `requires-python` rules this version out. Example: "3.13"."""
    wanted = requested.requires_python
    if not wanted or any(SpecifierSet(wanted).contains(each) for each in _patches(version)):
        return
    raise BuildFailed(
        "PYTHON_UNSATISFIABLE",
        f"functions run in Python {version} here, which requires-python {wanted!r} rules out",
        f"relax requires-python to {version}, or ask the operator for another base image "
        "(MAYFLY_BASE_IMAGE, MAYFLY_BASE_PYTHON)",
        line=line,
    )


def release(version: str) -> tuple[int, int]:
    """Return major and minor of a version such as "3.13" or "3.13.2"."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def write(directory: Path, name: str, content: bytes) -> None:
    """Write a directory of one file, readable to everybody."""
    directory.mkdir()
    directory.chmod(0o755)
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o644)


def _patches(version: str) -> tuple[str, ...]:
    # "3.13" may be any patch release: a bound such as >=3.13.1 is left to the installer.
    return (version,) if version.count(".") > 1 else (f"{version}.0", f"{version}.999")


def _metadata(source: bytes, kind: Kind) -> Metadata | None:
    reading: Callable[[str], Metadata | None] = (
        pep723.read_script if kind == "script" else pep723.read_optional
    )
    return reading(source.decode("utf-8-sig"))
