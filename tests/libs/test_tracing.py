"""libs.rpc.tracing: calls that say something of a function get a span."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mayfly.v1 import function_pb2, route_pb2

from libs.rpc.tracing import is_traced

assert function_pb2.DESCRIPTOR
assert route_pb2.DESCRIPTOR


@pytest.mark.parametrize(
    ("method", "traced"),
    [
        ("/mayfly.v1.FunctionService/CreateFunction", True),
        (b"/mayfly.v1.FunctionService/CreateFunction", True),
        ("/mayfly.v1.FunctionService/WatchFunction", False),
        ("/mayfly.v1.RouteService/SyncRoutes", False),
        ("/mayfly.v1.FunctionService/NoSuchMethod", False),
        ("/grpc.health.v1.Health/Check", False),
        ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", False),
    ],
)
def test_streams_and_plumbing_get_no_span(method: str | bytes, traced: bool) -> None:
    assert is_traced(SimpleNamespace(method=method)) is traced
