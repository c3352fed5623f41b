"""Blocking work that is finished even when whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Params = ParamSpec("Params")
ResultT = TypeVar("ResultT")


async def in_thread(
    work: Callable[Params, ResultT], *args: Params.args, **kwargs: Params.kwargs
) -> ResultT:
    """Run `work` in a thread; a cancellation takes effect when it has ended.

    A thread cannot be stopped: left alone, it would go on writing into what is being removed.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
