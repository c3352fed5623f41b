"""From an order to what Kaniko builds: the files of a context, and the arguments of its Dockerfile.

The Dockerfiles are those beside the runtimes, or the archive's own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.v1.build_pb2 import Artefact, ScriptSettings

from services.builder.backends.base import Order, Progress
from services.builder.backends.environment import archive, go, project
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.requirements import Requested, with_hashes
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.kaniko.context import Files
from services.builder.backends.python_source import Placed, check_for, place, read, write
from services.builder.failures import BuildFailed

DOCKERFILE = "Dockerfile"
RUNTIME = "/mayfly"
FUNCTION = "/function"
_FROM = re.compile(r"(?mi)^FROM\b.*$")
_SOURCE = "source"


@dataclass(frozen=True)
class Recipe:
    """What is built. `own` are the names of the user's Go files at the top, of a Go source."""

    files: Files
    arguments: Mapping[str, str]
    kind: Artefact.Kind.ValueType
    size: int
    said: str
    entry: str = ""
    settings: ScriptSettings = field(default_factory=ScriptSettings)
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Images:
    """References of base images; empty where the operator set none. `python` is a version."""

    base: str
    python: str
    go: str
    go_base: str


class Recipes:
    """Makes recipes."""

    def __init__(
        self, images: Images, runtimes: Path, limits: Limits, interpreters: Interpreters
    ) -> None:
        """`runtimes` is the directory of the runtimes' folders; `interpreters` check syntax."""
        self.images = images
        self.runtimes = runtimes
        self._limits = limits
        self._interpreters = interpreters

    async def placed(self, order: Order) -> Placed:
        """Put the source's files into `order.files`; the entry is "" where it has a Dockerfile.

        Raises `BuildFailed`.
        """
        # Another backend may have tried before.
        await in_thread(shutil.rmtree, order.files, ignore_errors=True)
        if order.kind == "archive":
            return await in_thread(_unpacked, order, self._limits)
        if order.runtime == "go":
            write(order.files, go.SOURCE, order.source)
            said = f"handler, {len(order.source)} bytes"
            return Placed(go.PROGRAM, True, len(order.source), said)
        return await place(order, self._limits)

    async def of(
        self, order: Order, placed: Placed, index: Sequence[str], progress: Progress
    ) -> Recipe:
        """Return what is to be built. `index` are names of arguments. Raises `BuildFailed`."""
        if not placed.entry:
            return Recipe(
                files={"": order.files},
                arguments={},
                kind=Artefact.KIND_IMAGE,
                size=placed.size,
                said="Dockerfile",
            )
        if order.runtime == "go":
            return await self._go(order, placed, index)
        return await self._python(order, placed, index, progress)

    async def _python(
        self, order: Order, placed: Placed, index: Sequence[str], progress: Progress
    ) -> Recipe:
        found = read(order, placed)
        for note in found.requested.notes:
            progress.log(note)
        await check_for(found, order.files, self.images.python, self._interpreters, progress.log)
        runtime = self.runtimes / "python"
        program = "container.py" if found.is_handler else "script.py"
        return Recipe(
            files={
                DOCKERFILE: declared((runtime / DOCKERFILE).read_text(), index).encode(),
                **{f"runtime/{path.name}": path for path in runtime.glob("*.py")},
                **requirement_files(found.requested),
                "function": order.files,
            },
            arguments={
                "BASE_IMAGE": self.images.base,
                "PROGRAM": f"{RUNTIME}/{program}",
                "ENTRY": f"{FUNCTION}/{found.entry}",
            },
            kind=found.kind,
            size=found.size,
            said=f"python {self.images.python}, {len(found.requested.requirements)} requirements",
            entry=found.entry,
            settings=found.settings,
        )

    async def _go(self, order: Order, placed: Placed, index: Sequence[str]) -> Recipe:
        folder = self.runtimes / "go"
        own = await in_thread(go.prepare, order.files, folder / "template")
        vendored = (order.files / "vendor" / "modules.txt").is_file()
        return Recipe(
            files={
                DOCKERFILE: declared((folder / DOCKERFILE).read_text(), index).encode(),
                _SOURCE: order.files,
            },
            arguments={
                "GO_IMAGE": self.images.go,
                "GO_BASE_IMAGE": self.images.go_base,
                "MOD": "vendor" if vendored else "mod",
            },
            kind=Artefact.KIND_GO_HANDLER,
            size=placed.size,
            said="go",
            entry=go.PROGRAM,
            own=own,
        )


def declared(dockerfile: str, names: Sequence[str]) -> str:
    """Return a Dockerfile in which every stage knows these arguments."""
    lines = "".join(f"\nARG {name}" for name in names)
    return _FROM.sub(lambda found: found[0] + lines, dockerfile)


def requirement_files(requested: Requested) -> Files:
    """Return what uv is told, as files in the context's folder `requirements`.

    https://docs.astral.sh/uv/reference/settings/ has the keys of uv.toml.
    """
    pinned = with_hashes(requested.requirements, requested.hashes)
    return {
        "requirements/requirements.txt": _lines(pinned),
        "requirements/constraints.txt": _lines(requested.constraints),
        "requirements/overrides.txt": _lines(requested.overrides),
        "requirements/uv.toml": _lines([_setting(option) for option in requested.options]),
    }


def _setting(option: str) -> str:
    name, _, value = option.removeprefix("--").partition("=")
    # A string of JSON is one of TOML as well.
    return f"{name} = {json.dumps(value)}"


def _lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _unpacked(order: Order, limits: Limits) -> Placed:
    size = archive.unpack(order.source, order.files, limits)
    if (order.files / DOCKERFILE).is_file():
        return Placed("", False, size, "archive, Dockerfile")
    if order.runtime == "go":
        if not any(order.files.glob("*.go")):
            raise BuildFailed(
                "ARCHIVE_INVALID",
                "the archive holds no Go file at its top, nor a Dockerfile",
                "put the file with func Handle at its top, beside go.mod",
            )
        return Placed(go.PROGRAM, True, size, f"archive, {len(order.source)} bytes")
    found = project.read(order.files)
    said = f"archive, {found.entry}"
    return Placed(found.entry, found.is_handler, size, said, found.metadata, found.requested)


def unavailable(runtime: str, images: Images) -> BuildFailed:
    """Return the failure of a runtime whose images are not set."""
    why = why_unavailable(runtime, images)
    return BuildFailed("UNKNOWN_RUNTIME", f"{runtime} cannot be used here: {why}", why)


def why_unavailable(runtime: str, images: Images) -> str:
    """Return why sources of a runtime cannot be built here, "" where they can."""
    if runtime == "go":
        return (
            "" if images.go and images.go_base else "set MAYFLY_GO_IMAGE and MAYFLY_GO_BASE_IMAGE"
        )
    return "" if images.base else "set MAYFLY_BASE_IMAGE"
