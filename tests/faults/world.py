"""What a Mayfly has on this machine, found by looking: processes, mounts, namespaces, sockets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")


@dataclass(frozen=True)
class Process:
    """A process that belongs to a data directory, and why it was taken to."""

    pid: int
    parent: int
    command: str
    why: str


@dataclass(frozen=True)
class World:
    """Everything that was found of one data directory."""

    processes: tuple[Process, ...] = ()
    mounts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs, is mounted or listens."""
        return not (self.processes or self.mounts or self.namespaces or self.sockets)

    def pids(self, *words: str) -> list[int]:
        """Return the ids of the processes whose command holds all the words."""
        return [p.pid for p in self.processes if all(w in p.command for w in words)]

    def describe(self) -> str:
        """Return a text for a failed assertion."""
        lines = [f"  {p.pid} <- {p.parent} [{p.why}] {p.command[:150]}" for p in self.processes]
        for name in ("mounts", "namespaces", "sockets", "cgroups"):
            lines += [f"  {name}: {entry}" for entry in getattr(self, name)]
        return "\n".join(["what there is:", *lines])


@dataclass
class Looker:
    """Looks for what belongs to `data_dir`; `mark` is a text in its processes' environment."""

    data_dir: Path
    mark: str
    uids: set[str] = field(default_factory=set[str])
    ignored: set[int] = field(default_factory=set[int])

    def look(self) -> World:
        """Return what there is now."""
        own = {name: _namespace("self", name) for name in NAMESPACES}
        found: dict[int, Process] = {}
        parents: dict[int, int] = {}
        for pid in _pids():
            if pid == os.getpid() or pid in self.ignored:
                continue
            parents[pid] = _parent(pid)
            if why := self._reason(pid, own["mnt"]):
                found[pid] = Process(pid, parents[pid], _command(pid), why)
        self._add_descendants(found, parents)
        living = [p for p in found.values() if _state(p.pid) not in {"Z", "X", ""}]
        apart = {
            f"{name} {inode}"
            for process in living
            for name in NAMESPACES
            if (inode := _namespace(str(process.pid), name)) not in {"", own[name]}
        }
        return World(
            processes=tuple(living),
            mounts=self._mounts(),
            namespaces=tuple(sorted(apart)),
            sockets=self._sockets(),
            cgroups=self._cgroups(),
        )

    def wait_until(self, condition: Callable[[World], bool], seconds: float, what: str) -> World:
        """Look until a condition holds. Raises `AssertionError` with what there is."""
        deadline = time.monotonic() + seconds
        while True:
            world = self.look()
            if condition(world):
                return world
            assert time.monotonic() < deadline, (
                f"not within {seconds} s: {what}\n{world.describe()}"
            )
            time.sleep(0.05)

    def wait_empty(self, seconds: float = 10) -> None:
        """Wait until nothing is left. Raises `AssertionError` with what there is."""
        self.wait_until(lambda world: world.is_empty, seconds, "nothing left")

    def directories(self) -> dict[str, list[str]]:
        """Return the names of what lies in the directories that functions' things are put in."""
        kept: dict[str, list[str]] = {}
        for below in ("process/sockets", "builds/artefacts"):
            place = self.data_dir / below
            kept[below] = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
        return kept

    def _reason(self, pid: int, own_mounts: str) -> str:
        directory = str(self.data_dir)
        command, environ = _command(pid), _read(pid, "environ")
        if directory in command:
            return "command"
        if directory in environ or self.mark in environ:
            return "environment"
        if uid := next((u for u in tuple(self.uids) if u in command or u in environ), ""):
            return f"function {uid}"
        if _namespace(str(pid), "mnt") != own_mounts and directory in _read(pid, "mountinfo"):
            return "mounts"
        return ""

    def _add_descendants(self, found: dict[int, Process], parents: dict[int, int]) -> None:
        grown = True
        while grown:
            children = [p for p, up in parents.items() if up in found and p not in found]
            for pid in children:
                found[pid] = Process(pid, parents[pid], _command(pid), "descendant")
            grown = bool(children)

    def _mounts(self) -> tuple[str, ...]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = (line.split()[4] for line in lines)
        return tuple(t for t in targets if t.startswith(f"{self.data_dir}/"))

    def _sockets(self) -> tuple[str, ...]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        paths = {line.split()[-1] for line in lines[1:] if "/" in line or "@" in line}
        return tuple(sorted(p for p in paths if p.startswith(f"{self.data_dir}/")))

    def _cgroups(self) -> tuple[str, ...]:
        wanted = self.uids
        top = Path("/sys/fs/cgroup")
        if not wanted or not top.is_dir():
            return ()
        return tuple(
            str(Path(place) / name)
            for place, names, _ in os.walk(top)
            for name in names
            if any(uid in name for uid in wanted)
        )


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError, OSError):
        return ""


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def _stat(pid: int) -> list[str]:
    # The command's name is in parentheses and may itself hold spaces and parentheses.
    return _read(pid, "stat").rpartition(")")[2].split()


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if len(fields) > 1 else 0


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else ""


def _namespace(pid: str, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{name}")
    except OSError:
        return ""
