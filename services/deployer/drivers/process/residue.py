"""What is really there: found by looking at the machine, never from memory."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from services.deployer.drivers.base import Resource
from services.deployer.drivers.process.sandbox import kernel

_TITLE = b"mayfly-function"
_SPARE = b"mayfly-spare"
_ZYGOTE = b"_mayfly_sandbox.zygote"


def marker_of(data_dir: Path) -> str:
    """Tells the processes of one data directory from those of others."""
    return "mayfly-" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]


def _command_lines() -> Iterator[tuple[int, list[bytes]]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line:
            yield int(name), line.split(b"\0")


def _environment_uid(pid: int, marker: str) -> str | None:
    """The function that a program was started for, by its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
        root = os.stat(f"/proc/{pid}/root/mayfly/.marker-{marker}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    del root
    for variable in variables:
        if variable.startswith(b"MAYFLY_INSTANCE="):
            return variable.partition(b"=")[2].decode("ascii", "replace")
    return None


def find_processes(marker: str) -> list[Resource]:
    """Zygotes (without a uid) and the processes of instances."""
    found: list[Resource] = []
    wanted = marker.encode()
    for pid, words in _command_lines():
        if words[0] == _TITLE and wanted in words and len(words) > 2:
            uid, instance = words[1].decode(), words[2].decode()
            found.append(Resource("process", str(pid), uid, f"instance {instance}"))
        elif words[0] == _SPARE and wanted in words:
            found.append(Resource("process", str(pid), None, "forked ahead"))
        elif wanted in words and any(_ZYGOTE in word for word in words):
            found.append(Resource("process", str(pid), None, "zygote"))
        else:
            uid_of_program = _environment_uid(pid, marker)
            if uid_of_program is not None:
                program = words[0].decode("utf-8", "replace")
                found.append(Resource("process", str(pid), uid_of_program, f"program {program}"))
    return found


def find_sockets(directory: Path) -> list[Resource]:
    return [
        Resource("socket", f"unix:{path}", path.stem, "listening socket of a function")
        for path in sorted(directory.glob("*.sock"))
    ]


def find_mounts(data_dir: Path) -> list[Resource]:
    """Mounts below the data directory that can be seen from where the platform runs."""
    found: list[Resource] = []
    prefix = str(data_dir / "process")
    with open("/proc/1/mounts" if _can_read("/proc/1/mounts") else "/proc/mounts") as file:
        for line in file:
            target = line.split()[1]
            if target == prefix or target.startswith(prefix + "/"):
                found.append(Resource("mount", target, None, line.split()[2]))
    return found


def _can_read(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def find_all(data_dir: Path, sockets: Path) -> list[Resource]:
    return [
        *find_processes(marker_of(data_dir)),
        *find_sockets(sockets),
        *find_mounts(data_dir),
    ]


def remove(resource: Resource, data_dir: Path, sockets: Path) -> None:
    """Remove one thing that `find_all` lists; nothing happens when it is gone or another's."""
    if resource.type == "process":
        _kill(resource, marker_of(data_dir))
    elif resource.type == "socket" and resource.id.startswith("unix:"):
        path = Path(resource.id.removeprefix("unix:"))
        if path.parent == sockets:
            path.unlink(missing_ok=True)
    elif resource.type == "mount" and Path(resource.id).is_relative_to(data_dir / "process"):
        kernel.umount(resource.id)


def _kill(resource: Resource, marker: str) -> None:
    """Kill by descriptor, after looking that the number still means the same process."""
    pid = int(resource.id)
    try:
        pidfd = kernel.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if any(each.id == resource.id for each in find_processes(marker)):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def without_uids(resources: Iterable[Resource], uids: set[str]) -> list[Resource]:
    """The orphans among them: what belongs to a function that is not known."""
    return [each for each in resources if each.uid is not None and each.uid not in uids]
