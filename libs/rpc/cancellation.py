"""What grpc.aio makes of a cancellation, made good."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raise `CancelledError` in a task that is to end.

    A stream that cannot be opened swallows a cancellation of that moment: the task in which
    grpc.aio opens it takes it for its own, and the stream's error comes instead. What opens
    streams without end asks here after each error; else it would never end.
    https://github.com/grpc/grpc/blob/v1.76.0/src/python/grpcio/grpc/aio/_call.py (`_prepare_rpc`)
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
