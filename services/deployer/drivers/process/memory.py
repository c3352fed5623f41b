"""What processes use, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")


def process_tree(pid: int) -> Iterator[int]:
    """`pid` and its descendants; of a first process of a pid namespace, everything in it."""
    pending = [pid]
    while pending:
        current = pending.pop()
        yield current
        try:
            for tid in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{tid}/children", encoding="ascii") as file:
                    pending += [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while it was looked at


def resident_bytes(pid: int) -> int:
    """Memory that is not of files, pages shared since the fork included; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            fields = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


def private_bytes(pid: int) -> int:
    """Memory that no other process shares; 0 when it has ended."""
    total = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith(("Private_Clean:", "Private_Dirty:")):
                    total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return total


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t", b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def scratch_bytes(pid: int) -> int:
    """What lies in the /tmp of an instance, given its first process."""
    try:
        usage = os.statvfs(f"/proc/{pid}/root/tmp")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def instance_bytes(pid: int, limit: int) -> int:
    """What an instance uses. Exact, which costs more, only where it may be over `limit`."""
    pids = list(process_tree(pid))
    scratch = scratch_bytes(pid)
    rough = sum(resident_bytes(each) for each in pids) + scratch
    if rough <= limit:
        return rough
    return sum(private_bytes(each) for each in pids) + scratch


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those it has waited for; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
