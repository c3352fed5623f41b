"""Running a program of the build: its lines as they come, and nothing left of it afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from libs.childprocess import Child, spawn

# Marks the processes of a build, with the build's uid: what a sweep looks for.
MARKER = "MAYFLY_BUILD_UID"
_TAIL_LINES = 200
_LONGEST_LINE = 4096
# How long a child that has ended may leave its output open through children of its own.
_LINGER_SECONDS = 2.0
_SHELL = 'umask 022; exec "$0" "$@"'
_SHELL_ERRORS_ONLY = 'umask 022; exec "$0" "$@" >/dev/null'


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit code (minus a signal's number), and its last lines."""

    code: int
    lines: Sequence[str]

    @property
    def text(self) -> str:
        """The last lines as one text."""
        return "\n".join(self.lines)


async def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    on_line: Callable[[str], None] | None = None,
    errors_only: bool = False,
) -> Finished:
    """Run `command`; `on_line` gets each line of its output (only stderr with `errors_only`).

    Cancelling kills it with all that it started. What it makes is readable to everybody, since
    functions run as other users.
    """
    reading, writing = os.pipe()
    try:
        shell = _SHELL_ERRORS_ONLY if errors_only else _SHELL
        child = await spawn(["/bin/sh", "-c", shell, *command], env=env, output=writing, cwd=cwd)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def take(line: str) -> None:
        tail.append(line)
        if on_line is not None:
            on_line(line)

    reader = asyncio.create_task(_read_lines(reading, take))
    try:
        code = await child.wait()
        await asyncio.wait([reader], timeout=_LINGER_SECONDS)
    finally:
        await _end(child)
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
    return Finished(code, tuple(tail))


async def _end(child: Child) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.wait()


async def _read_lines(descriptor: int, take: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            await _split(reader, take)
        finally:
            transport.close()


async def _split(reader: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    pending = b""
    while chunk := await reader.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            take(_text(line))
        if len(pending) > _LONGEST_LINE:
            take(_text(pending))
            pending = b""
    if pending:
        take(_text(pending))


def _text(line: bytes) -> str:
    return line[:_LONGEST_LINE].decode(errors="replace").rstrip("\r").replace("\0", "\ufffd")
