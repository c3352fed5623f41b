"""What there is of builds on this machine, found by looking and not by rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from services.builder.backends.environment.programs import MARKER
from services.builder.directories import Directories, names

ARTEFACT, ENVIRONMENT, TEMPORARY, PROCESS = "artefact", "environment", "workspace", "process"
_MARK = f"{MARKER}=".encode()


@dataclass(frozen=True)
class Thing:
    """`name` is the build id or digest, `uid` its incarnation's, `token` a workspace's claim."""

    type: str
    id: str
    name: str
    uid: str
    token: str = ""
    detail: str = ""


@dataclass(frozen=True)
class World:
    """What was found, and how much was looked at."""

    things: list[Thing]
    looked_at: list[str]


def look(directories: Directories) -> World:
    """Look at the directories, and at the processes of this machine. Blocks."""
    things: list[Thing] = []
    looked_at: list[str] = []
    for type_, label, directory in (
        (ARTEFACT, "artefacts", directories.artefacts),
        (ENVIRONMENT, "environments", directories.environments),
        (TEMPORARY, "workspaces", directories.temporary),
    ):
        found = [_directory(type_, directory, name) for name in names(directory)]
        things += found
        looked_at.append(f"{label} ({len(found)})")
    running, count = processes(directories)
    looked_at.append(f"processes ({count})")
    return World(things + running, looked_at)


def _directory(type_: str, parent: Path, name: str) -> Thing:
    first, _, second = name.partition(".")
    path = str(parent / name)
    second = second.partition(".")[0]
    if type_ == TEMPORARY:
        return Thing(type_, path, "", first, token=second)
    return Thing(type_, path, first, second)


def processes(directories: Directories) -> tuple[list[Thing], int]:
    """The programs that builds started, and how many processes there are."""
    found: list[Thing] = []
    numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    for number in numbers:
        if thing := process(number, directories):
            found.append(thing)
    return found, len(numbers)


def process(number: str, directories: Directories) -> Thing | None:
    """Return a process of a build, None for any other and for one that has gone.

    Other instances of the platform may build on this machine: a process of ours works below our
    own directories, which its environment names (the caches).
    """
    try:
        environ = Path(f"/proc/{number}/environ").read_bytes()
        if not environ.startswith(_MARK) and b"\0" + _MARK not in environ:
            return None
        if b"=" + os.fsencode(directories.root) + b"/" not in environ:
            return None
        stat = Path(f"/proc/{number}/stat").read_text()
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return None  # gone meanwhile, or another user's: none that a build of ours started
    marks = [part for part in environ.split(b"\0") if part.startswith(_MARK)]
    uid = marks[0].removeprefix(_MARK).decode(errors="replace")
    # With its start time the number is unique: numbers are used again.
    start = stat.rpartition(")")[2].split()[19]
    shown = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Thing(PROCESS, f"{number}@{start}", "", uid, detail=shown[:200])
