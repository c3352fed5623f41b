"""What the figures were taken on, as cores and memory."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe() -> str:
    """Return one line: cores, memory, kernel, Python, load."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    gibibytes = int(memory.group(1)) / (1 << 20) if memory else 0
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores, {gibibytes:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]} {platform.machine()}, "
        f"Python {platform.python_version()}, load average {load:.1f} before the run"
    )
