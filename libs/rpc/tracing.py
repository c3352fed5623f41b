"""Which calls get a span of their own."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pool


def is_traced(call: Any) -> bool:
    """Whether a call (anything with gRPC's `method`, "/package.Service/Method") gets a span.

    Calls of our contracts do, streams apart: those stay open for hours and would each be one span
    that ends when nobody asks any more. Health and reflection say nothing of a function, and a
    span for each export of spans would itself be exported, without end.
    """
    method = call.method
    return _is_traced(method.decode() if isinstance(method, bytes) else str(method))


@functools.cache
def _is_traced(method: str) -> bool:
    name = method.removeprefix("/").replace("/", ".")
    if not name.startswith("mayfly."):
        return False
    try:
        found: Any = descriptor_pool.Default().FindMethodByName(name)
    except KeyError:
        return False
    return not (found.server_streaming or found.client_streaming)
