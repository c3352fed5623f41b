"""libs.store against a real PostgreSQL that is killed and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest

from libs.store import Store, StoreUnavailable, UniqueViolation
from libs.store.migrate import upgrade
from services.standalone.postgres import EmbeddedPostgres

QUERIES = """
-- name: add(name)!
INSERT INTO thing (name) VALUES (:name);

-- name: count_things()$
SELECT count(*) FROM thing;
"""

MIGRATION = '''
"""First."""
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE thing (name text PRIMARY KEY)")
'''


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A tree of one migration."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(MIGRATION)
    return versions.parent


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """A file of named queries."""
    path = tmp_path / "queries.sql"
    path.write_text(QUERIES)
    return path


async def test_migrates_once_from_many_replicas_at_a_time(
    database_url: str, migrations: Path, queries: Path
) -> None:
    upgrades = (asyncio.to_thread(upgrade, database_url, "svc", migrations) for _ in range(3))
    await asyncio.gather(*upgrades)
    store = await Store.open(database_url, "svc", queries)
    async with store.transaction() as connection:
        await store.queries.add(connection, name="a")
    async with store.connection() as connection:
        assert await store.queries.count_things(connection) == 1
    with pytest.raises(UniqueViolation, match="thing_pkey"):
        async with store.transaction() as connection:
            await store.queries.add(connection, name="a")
    await store.close()


async def test_listeners_hear_commits_only(
    database_url: str, migrations: Path, queries: Path
) -> None:
    await asyncio.to_thread(upgrade, database_url, "svc", migrations)
    store = await Store.open(database_url, "svc", queries)
    listening = store.listen("things")
    assert await anext(listening) == ("", "")
    async with store.transaction() as connection:
        await store.notify(connection, "things", "x")
    async with asyncio.timeout(5):
        assert await anext(listening) == ("things", "x")
    await listening.aclose()
    await store.close()


async def test_a_listener_that_is_stopped_while_it_begins_leaves_no_connection(
    database_url: str, migrations: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(upgrade, database_url, "svc", migrations)
    store = await Store.open(database_url, "svc", queries)
    begun = asyncio.Event()

    async def silent(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def left() -> int:
        async with store.connection() as connection:
            return await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1",
                "mayfly-svc-listen",
            )

    monkeypatch.setattr(asyncpg.Connection, "add_listener", silent)
    begins = asyncio.ensure_future(anext(store.listen("things")))
    async with asyncio.timeout(5):
        await begun.wait()
        assert await left() == 1
        begins.cancel()
        await asyncio.wait([begins])
        while await left():
            pass
    await store.close()


async def test_goes_on_after_postgres_was_killed(
    migrations: Path, queries: Path, reachable_tmp: Path
) -> None:
    server = EmbeddedPostgres(reachable_tmp / "killed")
    await server.start()
    try:
        await asyncio.to_thread(upgrade, server.dsn, "svc", migrations)
        store = await Store.open(server.dsn, "svc", queries)
        listening = store.listen("things")
        assert await anext(listening) == ("", "")
        assert server._child is not None
        os.kill(server._child.pid, signal.SIGKILL)

        async def add() -> None:
            async with store.transaction() as connection:
                await store.queries.add(connection, name="after")

        async with asyncio.timeout(30):
            await store.retrying(add)
            assert await anext(listening) == ("", "")
        async with store.connection() as connection:
            assert await store.queries.count_things(connection) == 1
        await listening.aclose()
        await store.close()
    finally:
        await server.stop()


async def test_a_connection_that_breaks_under_a_statement_is_unavailable(
    migrations: Path, queries: Path, reachable_tmp: Path
) -> None:
    server = EmbeddedPostgres(reachable_tmp / "broken")
    await server.start()
    try:
        await asyncio.to_thread(upgrade, server.dsn, "svc", migrations)
        store = await Store.open(server.dsn, "svc", queries, max_size=1)

        async def sleep_on() -> None:
            async with store.connection() as connection:
                sleeping.set()
                await connection.execute("SELECT pg_sleep(60)")

        sleeping = asyncio.Event()
        statement = asyncio.create_task(sleep_on())
        await sleeping.wait()
        assert server._child is not None
        os.kill(server._child.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable):
                await statement
        await store.close()
    finally:
        await server.stop()
