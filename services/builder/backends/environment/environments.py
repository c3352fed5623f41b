"""Environments by content: resolved once, installed once, shared by all who require the same.

A directory is made under the build's workspace and moved to its place in one step, so that what
has its name is complete. It has a marker besides, against what others may do to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.builder.backends.base import Order, Progress
from services.builder.backends.environment.catalog import Catalog, EnvironmentRow
from services.builder.backends.environment.interpreters import Interpreter
from services.builder.backends.environment.requirements import Requested
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.environment.uv import Uv
from services.builder.digest import environment_digest, resolution_key

MARKER = "mayfly.json"


@dataclass(frozen=True)
class Environment:
    """Where an environment is, and what there is to say of it."""

    digest: str
    directory: Path
    said: str


class Environments:
    """Makes environments."""

    def __init__(
        self, uv: Uv, catalog: Catalog, directory: Path, platform: str, at_once: int
    ) -> None:
        """`at_once` bounds how many uv run at the same time."""
        self._uv = uv
        self._catalog = catalog
        self._directory = directory
        self._platform = platform
        self._running = asyncio.Semaphore(at_once)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def get(
        self, order: Order, requested: Requested, interpreter: Interpreter, progress: Progress
    ) -> Environment | None:
        """Return the environment of these requirements, None where none are needed here.

        Raises `BuildFailed`, `ClaimLost`.
        """
        if not requested.requirements:
            return None
        key = resolution_key(
            interpreter=interpreter.identity,
            requirements=requested.requirements,
            options=[*requested.fields(), *self._uv.deciding],
            platform=self._platform,
        )
        # One at a time for the same requirements: the second finds what the first has made.
        async with self._alone(key):
            row, lines = await self._row(order, key, requested, interpreter, progress)
            if row is None:
                return None
            directory = self._directory / f"{row.digest}.{row.uid}"
            if complete(directory):
                return Environment(row.digest, directory, _shared(row))
            async with self._alone(row.digest):
                if not complete(directory):
                    await self._install(order, lines, interpreter, directory, progress)
        return Environment(row.digest, directory, f"{len(lines)} packages installed")

    async def _row(
        self,
        order: Order,
        key: str,
        requested: Requested,
        interpreter: Interpreter,
        progress: Progress,
    ) -> tuple[EnvironmentRow | None, list[str]]:
        known = await self._catalog.resolved(order.id, order.token, key)
        if known is not None and (known.environment or not known.requirements):
            return known.environment, list(known.requirements)
        lines = list(known.requirements) if known else None
        if lines is None:
            async with self._running:
                with progress.span("resolve", requirements=len(requested.requirements)):
                    lines = await self._uv.resolve(
                        requested, interpreter, order.make_workspace(), order.uid, progress.log
                    )
        if not lines:
            await self._catalog.remember_empty(key)
            return None, []
        row = await self._catalog.use(
            order.id,
            order.token,
            key=key,
            digest=environment_digest(
                interpreter=interpreter.identity, requirements=lines, platform=self._platform
            ),
            uid=secrets.token_hex(8),
            interpreter=interpreter.identity,
            requirements=lines,
        )
        return row, lines

    async def _install(
        self,
        order: Order,
        lines: list[str],
        interpreter: Interpreter,
        directory: Path,
        progress: Progress,
    ) -> None:
        making = order.make_workspace() / "environment"
        async with self._running:
            with progress.span("install", packages=len(lines)):
                await self._uv.install(
                    lines, interpreter, making, order.workspace, order.uid, progress.log
                )
        making.chmod(0o755)
        about = {"interpreter": interpreter.identity, "requirements": lines}
        (making / MARKER).write_text(json.dumps(about))
        await in_thread(_publish, making, directory, order.workspace / "damaged")

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncGenerator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)


def complete(directory: Path) -> bool:
    """Whether an environment is there as it was made."""
    python = directory / "bin" / "python"
    return os.path.exists(directory / MARKER) and os.path.exists(python)


def _publish(making: Path, directory: Path, aside: Path) -> None:
    """Move a finished environment to its place, where another replica may have put the same."""
    if directory.exists() and not complete(directory):
        directory.rename(aside)
    try:
        making.rename(directory)
    except OSError:
        if not complete(directory):
            raise


def _shared(row: EnvironmentRow) -> str:
    if not row.users:
        return "already there"
    return f"shared with {row.users} function{'s' if row.users > 1 else ''}"
