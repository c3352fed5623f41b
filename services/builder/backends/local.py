"""What builds use of this machine while they are made: workspaces, and the programs they start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection
from pathlib import Path

from services.builder.backends.base import PROCESS, WORKSPACE, Thing, World
from services.builder.backends.environment.programs import MARKER
from services.builder.directories import Directories, names, remove

_MARK = f"{MARKER}=".encode()


class Local:
    """This replica's own workspaces and processes, whatever backend makes the artefacts."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories

    async def remove(self, uids: Collection[str]) -> dict[str, str]:
        """Remove the workspaces of builds; by uid, why something could not be."""
        return await asyncio.to_thread(self._remove, frozenset(uids))

    async def look(self) -> World:
        """Look at workspaces and at the processes of this machine."""
        return await asyncio.to_thread(self._look)

    async def remove_thing(self, thing: Thing) -> str:
        """Remove a workspace or end a process; return why it could not be, "" when it is gone."""
        if thing.type == WORKSPACE:
            failed = await asyncio.to_thread(remove, [Path(thing.id)])
            return "; ".join(failed.values())
        return self._end(thing)

    def _remove(self, uids: Collection[str]) -> dict[str, str]:
        failed: dict[str, str] = {}
        # Workspaces are few: only of builds that are under way.
        for name in names(self._directories.temporary):
            uid = name.partition(".")[0]
            if uid in uids:
                for why in remove([self._directories.temporary / name]).values():
                    failed[uid] = why
        return failed

    def _look(self) -> World:
        parent = self._directories.temporary
        found = [_workspace(parent, name) for name in names(parent)]
        running, count = processes(self._directories)
        looked_at = [f"workspaces ({len(found)})", f"processes ({count})"]
        return World(found + running, looked_at)

    def _end(self, thing: Thing) -> str:
        number, _, _ = thing.id.partition("@")
        try:
            descriptor = os.pidfd_open(int(number))
        except ProcessLookupError:
            return ""
        try:
            # The descriptor is that of one process for good; is it still the one that was meant?
            same = process(number, self._directories)
            if same is not None and same.id == thing.id:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        except PermissionError as error:
            return str(error)
        finally:
            os.close(descriptor)
        return ""


def _workspace(parent: Path, name: str) -> Thing:
    uid, _, rest = name.partition(".")
    return Thing(WORKSPACE, str(parent / name), "", uid, token=rest.partition(".")[0])


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
