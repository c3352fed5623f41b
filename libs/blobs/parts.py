"""Cutting a stream into parts of one size."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator


async def in_parts(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """Yield the bytes of `chunks` in parts of `size` bytes, the last one with what is left."""
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        while len(pending) >= size:
            yield bytes(pending[:size])
            del pending[:size]
    if pending:
        yield bytes(pending)
