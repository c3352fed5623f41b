"""The pure table of routes, and what follows from an entry."""

from __future__ import annotations

import time

import pytest
from mayfly.v1.function_pb2 import State
from mayfly.v1.source_pb2 import Failure, Stage

from services.gateway.errors import ENDED
from services.gateway.routes import RouteTable, needs_cluster, refusal
from tests.gateway.deployer import route


def test_upsert_replaces_and_remembers_within_one_life() -> None:
    table = RouteTable()
    table.upsert(route("a", "unix:/1", uid="1", state=State.STATE_READY))
    assert table.note("a", "1", "used")
    assert not table.note("a", "1", "used")
    updating = table.upsert(route("a", "unix:/1", uid="1", state=State.STATE_BUILDING))
    assert (updating.used, updating.settled) == (True, True)
    newer = table.upsert(route("a", "unix:/2", uid="2", state=State.STATE_BUILDING))
    assert (newer.used, newer.settled) == (False, False)
    assert not table.note("a", "1", "used")


def test_removal_is_by_uid() -> None:
    table = RouteTable()
    table.upsert(route("a", "unix:/1", uid="2"))
    assert not table.remove("a", "1")
    assert not table.remove("b", "2")
    assert table.get("a") is not None
    assert table.remove("a", "2")
    assert (len(table), table.get("a")) == (0, None)


def test_what_a_snapshot_leaves_out_is_missing() -> None:
    table = RouteTable()
    for name in "abc":
        table.upsert(route(name, "unix:/1"))
    assert [r.function_id for r in table.missing_from(["uid-a", "uid-c"])] == ["b"]


@pytest.mark.parametrize(
    ("state", "endpoint", "ttl", "used", "expected"),
    [
        (State.STATE_READY, "unix:/1", 60, True, True),
        (State.STATE_IDLE, "unix:/1", 60, True, True),
        (State.STATE_READY, "unix:/1", 60, False, False),  # the first request is to be seen
        (State.STATE_DEPLOYING, "unix:/1", 60, True, False),  # its time limit has not begun
        (State.STATE_READY, "", 60, True, False),
        (State.STATE_FAILED, "unix:/1", 60, True, False),
        (State.STATE_READY, "unix:/1", -1, True, False),
        (State.STATE_EXPIRED, "unix:/1", 60, True, False),
    ],
)
def test_envoy_has_a_cluster_for(
    state: State.ValueType, endpoint: str, ttl: float, used: bool, expected: bool
) -> None:
    entry = RouteTable().upsert(route("a", endpoint, state=state, ttl=ttl), used=used)
    assert needs_cluster(entry, time.time()) is expected


def test_refusals() -> None:
    table = RouteTable()
    assert refusal(table.upsert(route("a", "")), time.time()) is None  # held
    assert refusal(table.upsert(route("a", "unix:/1", ttl=-60)), time.time()) is ENDED
    assert (
        refusal(table.upsert(route("a", "unix:/1", state=State.STATE_RECLAIMED)), time.time())
        is ENDED
    )
    failed = route("a", "", state=State.STATE_FAILED)
    failed.failure.CopyFrom(Failure(stage=Stage.STAGE_DEPLOY, reason="SCRIPT_EXITED", message="m"))
    problem = refusal(table.upsert(failed), time.time())
    assert problem is not None
    assert (problem.http, problem.stage, problem.reason) == (503, "deploy", "SCRIPT_EXITED")
