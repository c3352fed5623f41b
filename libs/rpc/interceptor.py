"""The one place where an exception becomes a gRPC status."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from mayfly.v1.error_pb2 import ErrorReason
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from libs.rpc.errors import (
    STATUS_TRAILER,
    MayflyError,
    from_rpc_error,
    to_status,
)
from libs.store.errors import StoreUnavailable

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a method raises into `google.rpc.Status`, and marks the span."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's behaviour; the four shapes of gRPC methods differ only in streaming."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour: Any = _streaming(handler.stream_stream or handler.unary_stream, method)
        else:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            behaviour = _unary(handler.stream_unary or handler.unary_unary, method)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _unary(behaviour: Any, method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a status
            await _abort(context, method, error)

    return call


def _streaming(behaviour: Any, method: str) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = behaviour(request, context)
            if inspect.isawaitable(responses):  # writes to the context itself, as health's Watch
                await responses
                return
            async for response in responses:
                yield response
        except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a status
            await _abort(context, method, error)

    return call


def explain(error: Exception) -> MayflyError:
    """Return the failure that a caller is told for `error`."""
    if isinstance(error, MayflyError):
        return error
    if isinstance(error, StoreUnavailable):
        return MayflyError(
            ErrorReason.ERROR_REASON_UNAVAILABLE,
            "the database is not reachable",
            fix="try again in a moment",
        )
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    return MayflyError(
        ErrorReason.ERROR_REASON_INTERNAL,
        "an internal fault; the logs have it under this trace",
        fix="try again, and report the trace id if it persists",
    )


async def _abort(context: Context, method: str, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    failure = explain(error)
    if failure.reason == ErrorReason.ERROR_REASON_INTERNAL:
        log.error("rpc_failed", method=method, exc_info=error)
    span = trace.get_current_span()
    span.set_status(Status(StatusCode.ERROR, failure.message))
    span.set_attribute("mayfly.reason", failure.reason_name)
    status = to_status(failure)
    try:
        await context.abort(
            failure.code,
            failure.message,
            ((STATUS_TRAILER, status.SerializeToString()),),
        )
    except asyncio.InvalidStateError:
        # The peer has gone away meanwhile: there is nobody to tell.
        log.info("rpc_peer_gone", method=method)
    raise error
