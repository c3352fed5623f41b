"""Finds functions by their names."""

from __future__ import annotations

from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError
from libs.store import Store
from services.deployer.effective import Defaults
from services.deployer.rows import FunctionRow, row_of


class Lookup:
    """Reads rows; an id means the function that lives, else the latest that had it."""

    def __init__(self, store: Store, defaults: Defaults) -> None:
        self._store = store
        self.defaults = defaults

    async def newest(self, function_id: str) -> FunctionRow:
        """Return the row of an id. Raises NOT_FOUND."""

        async def read() -> FunctionRow | None:
            async with self._store.connection() as connection:
                record = await self._store.queries.function_by_id(connection, id=function_id)
            return row_of(record) if record else None

        row = await self._store.retrying(read)
        if row is None:
            raise MayflyError(
                ErrorReason.ERROR_REASON_NOT_FOUND,
                f"there is no function functions/{function_id}",
                fix="list functions to see which there are; ended ones are kept for a time only",
            )
        return row

    async def by_uids(self, uids: list[str]) -> list[FunctionRow]:
        """Return the rows of `uids` that there are."""

        async def read() -> list[FunctionRow]:
            async with self._store.connection() as connection:
                records = self._store.queries.functions_by_uid(connection, uids=uids)
                return [row_of(record) async for record in records]

        return await self._store.retrying(read)
