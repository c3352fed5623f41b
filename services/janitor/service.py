"""JanitorService: receipts, sweeps, and how far the janitor is behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from mayfly.v1 import janitor_pb2, janitor_pb2_grpc
from mayfly.v1.error_pb2 import ErrorReason

from libs.rpc.errors import MayflyError
from services.janitor.owners import Owner
from services.janitor.paging import from_token, page_size, to_token
from services.janitor.receipts import Receipts, duration, timestamp
from services.janitor.reclaim import Reclaimer
from services.janitor.sweep import Sweeper

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

NAME = "mayfly.v1.JanitorService"
_PREFIX = "receipts/"


class JanitorService(janitor_pb2_grpc.JanitorServiceServicer):
    """What people and programs ask the janitor."""

    def __init__(
        self,
        owners: Mapping[str, Owner],
        receipts: Receipts,
        reclaimer: Reclaimer,
        sweeper: Sweeper,
    ) -> None:
        self._owners = owners
        self._receipts = receipts
        self._reclaimer = reclaimer
        self._sweeper = sweeper

    async def GetReceipt(
        self,
        request: janitor_pb2.GetReceiptRequest,
        context: Context,
    ) -> janitor_pb2.GetReceiptResponse:
        """Return the latest receipt of a name."""
        if not request.name.startswith(_PREFIX):
            raise MayflyError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                f"{request.name!r} is no name of a receipt",
                fix="give receipts/ and the function's id, for example receipts/hello",
                field="name",
            )
        receipt = await self._receipts.latest(request.name)
        subject = request.name.removeprefix(_PREFIX)
        if receipt == "pending":
            raise MayflyError(
                ErrorReason.ERROR_REASON_NOT_FOUND,
                f"{subject} has ended and is being removed; it has no receipt yet",
                fix="ask again in a moment",
            )
        if receipt is None:
            raise MayflyError(
                ErrorReason.ERROR_REASON_NOT_FOUND,
                f"{subject} has no receipt: it has not ended, never was, or ended too long ago",
                fix=f"see whether it still lives: mayfly get {subject}",
            )
        return janitor_pb2.GetReceiptResponse(receipt=receipt)

    async def ListReceipts(
        self,
        request: janitor_pb2.ListReceiptsRequest,
        context: Context,
    ) -> janitor_pb2.ListReceiptsResponse:
        """Return one page of receipts, newest first."""
        position = from_token(request.page_token)
        receipts, following = await self._receipts.page(position, page_size(request.page_size))
        return janitor_pb2.ListReceiptsResponse(
            receipts=receipts, next_page_token=to_token(following)
        )

    async def Sweep(
        self,
        request: janitor_pb2.SweepRequest,
        context: Context,
    ) -> AsyncIterator[janitor_pb2.SweepResponse]:
        """Stream what belongs to nothing, and the summary last."""
        async with aclosing(self._sweeper.sweep(dry_run=request.dry_run)) as responses:
            async for response in responses:
                yield response

    async def GetStatus(
        self,
        request: janitor_pb2.GetStatusRequest,
        context: Context,
    ) -> janitor_pb2.GetStatusResponse:
        """Return how far the janitor is behind."""
        response = janitor_pb2.GetStatusResponse(
            deadlines=self._reclaimer.deadlines,
            overdue=self._reclaimer.overdue,
            lag=duration(self._reclaimer.lag),
            owners=[name for name, owner in self._owners.items() if owner.connected.is_set()],
        )
        if upcoming := self._reclaimer.next_deadline():
            response.next_deadline.CopyFrom(timestamp(upcoming))
        if swept := await self._receipts.last_sweep_time():
            response.last_sweep_time.FromDatetime(swept)
        return response
