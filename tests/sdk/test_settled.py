"""What a deployment comes to once it is settled."""

from __future__ import annotations

import pytest
from mayfly.errors import FunctionEnded, FunctionFailed, settled
from mayfly.resources import Function
from mayfly.v1 import function_pb2
from mayfly.v1.source_pb2 import Failure


def function(state: function_pb2.State.ValueType, failure: Failure | None = None) -> Function:
    return Function.of(function_pb2.Function(name="functions/f", state=state, failure=failure))


def test_a_function_that_answers_is_returned() -> None:
    ready = function(function_pb2.STATE_READY)
    assert settled(ready) is ready


def test_a_failure_is_raised() -> None:
    with pytest.raises(FunctionFailed, match="no handler"):
        settled(function(function_pb2.STATE_FAILED, Failure(message="no handler")))


def test_a_lease_that_ended_while_building_is_said() -> None:
    with pytest.raises(FunctionEnded, match="ended before it was ready"):
        settled(function(function_pb2.STATE_EXPIRED))
