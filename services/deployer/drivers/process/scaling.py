"""When a function gets more or fewer instances, and how ends are described: pure decisions."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.deployer.drivers.base import Workload

if TYPE_CHECKING:
    from services.deployer.drivers.process.instances import Instance

# Seconds between two looks at a socket where somebody waits, and where no more may be started.
CHECK = 0.02
CHECK_AT_MOST = 0.2
# Looks in a row at which a script, whose load cannot be seen, left somebody waiting.
_SCRIPT_LOOKS = 3
_HANDLER_LOOKS = 1
# An instance that ends by itself within this many seconds counts as one that did not start.
EARLY_END = 2.0
# How long a count from the gateway holds.
TOUCH_VALID = 15.0


def wants_more(workload: Workload, serving: Sequence[Instance], looks: int) -> bool:
    """Whether to start one more. `looks`: how often in a row somebody was seen waiting."""
    if len(serving) >= workload.max_instances:
        return False
    if any(instance.state == "starting" for instance in serving):
        return False
    if workload.kind == "script":
        return looks >= _SCRIPT_LOOKS
    return looks >= _HANDLER_LOOKS and all(instance.is_saturated for instance in serving)


def first_idle_check(instance: Instance) -> float:
    idle = instance.workload.idle_stop
    return idle if instance.workload.kind != "script" else max(idle / 4, 0.05)


def idle_delay(instance: Instance, now: float) -> float:
    """Seconds until it may be idle for long enough; 0 or less: it is."""
    idle = instance.workload.idle_stop
    if instance.workload.kind == "script":
        left = instance.last_used + idle - now
        return left if left <= 0 else min(left, max(idle / 4, 0.05))
    if instance.connections:
        return idle
    return instance.last_change() + idle - now


def backoff(failures: int) -> float:
    """Seconds to wait after so many starts that failed in a row."""
    return min(10.0, 0.1 * 2 ** min(failures - 1, 8))


def plain_exit(code: int) -> int:
    """An exit code as a parent sees it: the init of a script adds 128 to a signal's number."""
    return 128 - code if 128 < code < 128 + 65 else code


def describe_exit(code: int) -> str:
    code = plain_exit(code)
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


async def probe(port: int, path: str, timeout: float) -> int | None:
    """The status of GET `path` on a loopback port; None without an answer."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                writer.write(request.encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    return int(words[1]) if len(words) >= 2 and words[1].isdigit() else None
