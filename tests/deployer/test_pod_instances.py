"""What is told of instances, as their pods change; and when one is replaced."""

from __future__ import annotations

from typing import Any

from services.deployer.drivers.base import InstanceStarted, InstanceStopped, Notification
from services.deployer.drivers.cluster.backoff import Patience, is_backing_off
from services.deployer.drivers.cluster.instances import Instances

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:01Z"}}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:02Z"}


def pod(
    state: dict[str, Any], last: dict[str, Any] | None = None, *, ready: bool = False, **more: Any
) -> dict[str, Any]:
    metadata = {
        "name": "p",
        "labels": {"mayfly.dev/uid": "f00d", "mayfly.dev/revision": "2"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        **more,
    }
    container = {"name": "function", "state": state, "lastState": last or {}, "restartCount": 0}
    status = {
        "phase": "Running",
        "containerStatuses": [container],
        "conditions": [READY] if ready else [],
    }
    return {"metadata": metadata, "spec": {"containers": [{"name": "function"}]}, "status": status}


def end(code: int, which: str = "a", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "containerID": which, "reason": reason}}


def told_of(*seen: dict[str, Any], known: dict[str, Any] | None = None) -> list[Notification]:
    told: list[Notification] = []
    instances = Instances(told.append)
    if known is not None:
        instances.know(known)
    for each in seen:
        instances.take(each)
    return told


def test_an_end_is_told_once_whether_it_was_ready_or_not():
    stopped = InstanceStopped("f00d", "p", "exited", 3)
    ends = (pod(end(3)), pod(BACK_OFF, end(3)), pod(RUNNING, end(3)))
    assert told_of(pod(RUNNING), *ends) == [stopped]
    assert told_of(pod(RUNNING), ends[-1]) == [stopped]
    started = InstanceStarted("f00d", "p", 2, 2.0)
    ready = pod(RUNNING, ready=True)
    again = pod(RUNNING, end(3), ready=True)
    assert told_of(ready, ready, *ends, again) == [started, stopped, started]


def test_each_end_is_told_with_its_reason():
    seen = (pod(end(-1 % 256, "a")), pod(end(137, "b")), pod(end(137, "c", "OOMKilled")))
    told = [(n.reason, n.exit_code) for n in told_of(*seen) if isinstance(n, InstanceStopped)]
    assert told == [("exited", 255), ("killed", -9), ("memory", -9)]


def test_what_ended_before_it_was_followed_is_not_told():
    before = pod(RUNNING, end(3), ready=True)
    assert told_of(known=before) == [InstanceStarted("f00d", "p", 2, 2.0)]
    assert told_of(pod(RUNNING, end(3, "b")), known=pod(RUNNING, end(3))) == [
        InstanceStopped("f00d", "p", "exited", 3)
    ]


def test_one_that_is_deleted_is_no_failure():
    going = pod(end(143), deletionTimestamp="2026-01-01T00:00:09Z")
    assert told_of(pod(RUNNING, ready=True), going, going)[1:] == [
        InstanceStopped("f00d", "p", "idle", None)
    ]
    assert told_of(pod(RUNNING), going) == []
    told: list[Notification] = []
    instances = Instances(told.append)
    instances.take(pod(RUNNING, ready=True))
    instances.gone(pod(RUNNING, ready=True))
    assert told[1:] == [InstanceStopped("f00d", "p", "idle", None)]


def test_only_what_the_kubelet_makes_wait_is_replaced():
    assert is_backing_off(pod(BACK_OFF, end(1)))
    assert not is_backing_off(pod(RUNNING, end(1)))
    assert not is_backing_off(pod({"waiting": {"reason": "ImagePullBackOff"}}))
    assert not is_backing_off(pod(BACK_OFF, end(1), deletionTimestamp="2026-01-01T00:00:09Z"))


def test_replacements_become_rarer_while_they_go_on():
    patience = Patience(0.0)
    assert patience.next(9.9) is None
    pauses: list[float] = []
    for _ in range(7):
        found = patience.next(patience.at + patience.pause)
        assert found is not None
        patience = found
        pauses.append(patience.pause)
    assert pauses == [20, 40, 80, 160, 300, 300, 300]
    assert patience.next(patience.at + 601) == Patience(patience.at + 601)
