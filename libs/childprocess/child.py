"""Start and stop children that the kernel ends when this process dies, however it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import libs.childprocess.bound as bound


@dataclass(frozen=True)
class Child:
    """A running child, the leader of its own process group."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    async def wait(self) -> int:
        """Return its exit code when it has ended (minus the signal's number)."""
        return await self.process.wait()

    async def stop(self, number: signal.Signals, grace: float) -> int:
        """Send a signal; after `grace` seconds SIGKILL to its group. Return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            try:
                return await asyncio.wait_for(self.process.wait(), grace)
            except TimeoutError:
                os.killpg(self.pid, signal.SIGKILL)
        return await self.process.wait()


async def spawn(
    command: Sequence[str],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    env: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
    output: IO[bytes] | int | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start `command` (its program an absolute path) in a group of its own.

    Must be called from the main thread: the kernel sends `death_signal` when the thread that
    forked ends. `user` is (uid, gid); `output` takes both stdout and stderr.
    """
    uid, gid = user or (-1, -1)
    numbers = [str(number) for number in (int(death_signal), os.getpid(), uid, gid)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(bound.__file__), *numbers, *command),
        env=None if env is None else dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        cwd=cwd,
    )
    return Child(process)
