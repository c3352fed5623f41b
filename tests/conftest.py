"""What every test may use: a real PostgreSQL, one database a test."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from services.standalone.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def reachable_tmp() -> Iterator[Path]:
    """A directory that unprivileged users can enter, unlike pytest's own as root."""
    path = Path(tempfile.mkdtemp(prefix="mayfly-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(reachable_tmp: Path) -> AsyncIterator[EmbeddedPostgres]:
    """One PostgreSQL a session."""
    server = EmbeddedPostgres(reachable_tmp / "postgres")
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """An empty database of the test's own, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres.dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        head, _, tail = postgres.dsn.partition("@/")
        yield f"{head}@/{name}?{tail.partition('?')[2]}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MAYFLY_"):
            monkeypatch.delenv(name)
