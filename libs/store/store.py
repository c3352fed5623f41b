"""A service's own schema in PostgreSQL.

The only package that talks to asyncpg. Connections that break while PostgreSQL restarts are
replaced: taking one is retried for `RECONNECT_SECONDS`, then `StoreUnavailable` is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import aiosql
import asyncpg
import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from libs.store.errors import StoreUnavailable, UniqueViolation

log = structlog.get_logger()

Record: TypeAlias = Any
Connection: TypeAlias = Any
ResultT = TypeVar("ResultT")

RECONNECT_SECONDS = 10.0
CONNECTION_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    # What a connection says that was told of the server's end while it was idle.
    asyncpg.InternalClientError,
)
CONFLICT = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


class Store:
    """A pool of connections whose search path is one schema, and that schema's named queries."""

    def __init__(self, dsn: str, schema: str, queries: Any, pool: Any) -> None:
        self.dsn = dsn
        self.schema = schema
        # Methods named after the queries; each takes a connection and keyword arguments.
        self.queries = queries
        self._pool = pool

    @classmethod
    async def open(
        cls, dsn: str, schema: str, queries_path: Path, *, min_size: int = 1, max_size: int = 8
    ) -> Store:
        """Connect, retrying while PostgreSQL starts. Raises `StoreUnavailable`."""
        queries: Any = aiosql.from_path(queries_path, "asyncpg")  # pyright: ignore[reportUnknownMemberType]

        async def connect() -> Any:
            return await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                server_settings={"search_path": schema, "application_name": f"mayfly-{schema}"},
                command_timeout=30,
                reset=_leave_as_is,
            )

        return cls(dsn, schema, queries, await _reconnecting(connect))

    async def close(self) -> None:
        """Close all connections, at once where one does not return."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout=3)
        except (TimeoutError, *CONNECTION_LOST):
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Lend a connection; each statement is its own transaction."""
        connection = await _reconnecting(self._acquire)
        try:
            with _translated():
                yield connection
        except StoreUnavailable:
            # The pool may have taken it back by itself when it broke; then there is nothing to end.
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.terminate()
            raise
        finally:
            await self._release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """Lend a connection inside a transaction: committed at the end, undone by an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def retrying(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run idempotent `work` again when its connection is lost or it conflicts with another."""
        return await _reconnecting(work, (*CONNECTION_LOST, *CONFLICT, StoreUnavailable))

    async def notify(self, connection: Connection, channel: str, payload: str = "") -> None:
        """Wake the listeners of `channel` when the connection's transaction commits."""
        await connection.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def listen(self, *channels: str) -> AsyncGenerator[tuple[str, str]]:
        """Yield (channel, payload) of notifications, without end.

        After each (re)connection it yields ("", ""): what was notified meanwhile is not known, so
        the listener looks for itself. Whoever may be interrupted closes it (`aclosing`).
        """
        while True:
            queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
            try:
                connection = await self._listening(channels, queue)
            except StoreUnavailable:
                continue
            try:
                yield ("", "")
                while (item := await queue.get()) is not None:
                    yield item
            finally:
                connection.terminate()
            log.info("listen_reconnects", schema=self.schema)

    async def _listening(
        self, channels: tuple[str, ...], queue: asyncio.Queue[tuple[str, str] | None]
    ) -> Any:
        def on_notification(_: Any, __: int, channel: str, payload: str) -> None:
            queue.put_nowait((channel, payload))

        def on_end(_: Any) -> None:
            queue.put_nowait(None)

        async def connect() -> Any:
            connection: Any = await asyncpg.connect(
                self.dsn, server_settings={"application_name": f"mayfly-{self.schema}-listen"}
            )
            connection.add_termination_listener(on_end)
            try:
                for channel in channels:
                    await connection.add_listener(channel, on_notification)
            except BaseException:
                connection.terminate()
                raise
            return connection

        return await _reconnecting(connect)

    async def _acquire(self) -> Any:
        return await self._pool.acquire(timeout=RECONNECT_SECONDS)

    async def _release(self, connection: Any) -> None:
        try:
            await self._pool.release(connection, timeout=3)
        except (TimeoutError, *CONNECTION_LOST) as error:
            log.info("connection_lost", schema=self.schema, error=str(error))


class _translated:
    """Turns asyncpg's errors into the store's own."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        if isinstance(error, asyncpg.UniqueViolationError):
            raise UniqueViolation(str(error.constraint_name)) from error
        if isinstance(error, asyncpg.InterfaceError) and not _lost(error):
            return
        if isinstance(error, CONNECTION_LOST):
            raise StoreUnavailable(str(error)) from error


def _lost(error: asyncpg.InterfaceError) -> bool:
    # asyncpg reports both misuse and a closed connection by InterfaceError.
    return "closed" in str(error)


async def _leave_as_is(_: Any) -> None:
    """Spare a round trip a loan: statements here leave no session state to be reset.

    A transaction that is still open is rolled back in any case.
    """


async def _reconnecting(
    work: Callable[[], Awaitable[ResultT]], on: tuple[type[BaseException], ...] = CONNECTION_LOST
) -> ResultT:
    attempts = AsyncRetrying(
        retry=retry_if_exception_type((*on, TimeoutError)),
        wait=wait_exponential_jitter(multiplier=0.02, max=0.5, jitter=0.05),
        stop=stop_after_delay(RECONNECT_SECONDS),
        reraise=True,
    )

    async def attempt() -> ResultT:
        # A coroutine function for certain: of a lambda the coroutine would come back unawaited.
        return await work()

    try:
        # Nearly always the first try is the last, and costs nothing but itself.
        return await work()
    except (*on, TimeoutError) as error:
        log.info("store_retries", error=str(error) or type(error).__name__)
    try:
        return await attempts(attempt)
    except (*CONNECTION_LOST, TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error
