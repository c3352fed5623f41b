"""What a backend is: something that makes artefacts from sources."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mayfly.v1.build_pb2 import Artefact, Runtime
from mayfly.v1.source_pb2 import Stage

# Types of things: see `Thing.type`.
ARTEFACT, ENVIRONMENT, WORKSPACE, PROCESS = "artefact", "environment", "workspace", "process"
IMAGE, CONTEXT, POD, SECRET = "image", "context", "pod", "secret"

Kind = Literal["handler", "script", "archive", "image"]


@dataclass(frozen=True)
class Order:
    """A build that is to be done.

    `id` follows from the content, `uid` is this incarnation's own, `token` is the claim of the
    worker that does it. The artefact goes to `directory`, an absolute path that does not exist
    yet (or holds the very same artefact, of an earlier try). `files` and `workspace` are for
    making it: paths on the same file system that do not exist yet, removed afterwards whatever
    happens.
    """

    id: str
    uid: str
    token: str
    runtime: str
    kind: Kind
    source: bytes
    directory: Path
    files: Path
    workspace: Path

    def make_workspace(self) -> Path:
        """Return the workspace, made where it is not there yet."""
        self.workspace.mkdir(mode=0o700, exist_ok=True)
        return self.workspace


class Step(Protocol):
    """A step that is under way."""

    def detail(self, text: str) -> None:
        """Say what it did, in a few words for a person."""
        ...


class Progress(Protocol):
    """Who is told how a build goes."""

    def log(self, line: str) -> None:
        """A line of the build's log."""
        ...

    def step(self, stage: Stage.ValueType) -> AbstractContextManager[Step]:
        """A step, from entering to leaving; an exception marks it as failed."""
        ...

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[None]:
        """A part of a step that is worth a span of its own."""
        ...


@dataclass(frozen=True)
class Thing:
    """Something found in the world that a build made or uses.

    `type`: artefact, environment, workspace, process, image, context, pod, secret. `id` tells it
    from all others of its type. `name` is the build id or the environment's digest, `uid` its
    incarnation's, `token` the claim that works with it; each empty where it has none.
    """

    type: str
    id: str
    name: str
    uid: str
    token: str = ""
    detail: str = ""


@dataclass(frozen=True)
class World:
    """What was found, and how much was looked at. Example: "images (12)"."""

    things: list[Thing]
    looked_at: list[str]


@dataclass(frozen=True)
class Made:
    """A build that has ended, whose things are to go. `artefact` is None where it made none."""

    id: str
    uid: str
    artefact: Artefact | None


@dataclass
class NotHere(Exception):
    """This backend cannot build this source; the next one may.

    `message` says what it cannot do, as a sentence without a full stop. Example: "six 1.0 has no
    wheel for Python 3.13, and the backend layers builds no source distributions".
    """

    message: str

    def __post_init__(self) -> None:
        super().__init__(self.message)


class Backend(Protocol):
    """Makes artefacts. Every method is idempotent and may run in many replicas at once."""

    name: str
    """Its name in settings and in fingerprints."""

    def supports(self, runtime: str, kind: Kind) -> bool:
        """Whether sources of this kind can be built for this runtime, where it is available."""
        ...

    async def runtimes(self) -> Sequence[Runtime]:
        """Return the runtimes and whether each can be used here."""
        ...

    async def fingerprint(self, runtime: str) -> str:
        """Return what decides an artefact besides its source. Raises `BuildFailed`."""
        ...

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """Make the artefact. Raises `BuildFailed`, and `NotHere` where another backend may do it.

        Any other exception is a fault of ours.
        """
        ...

    async def present(self, artefact: Artefact) -> bool:
        """Whether all that an artefact needs is still there."""
        ...

    async def lost(self, builds: Sequence[Made]) -> Sequence[str]:
        """Return the uids of builds whose images are gone; of many, some.

        Raises `BuildFailed` where that cannot be seen.
        """
        ...

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """Remove all that builds made or left; by uid, why something could not be."""
        ...

    async def look(self) -> World:
        """Look at the world, never at rows."""
        ...

    async def remove_thing(self, thing: Thing) -> str:
        """Remove an orphan; return why it could not be, "" when it is gone."""
        ...
