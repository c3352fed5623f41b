"""Rows as the messages that callers see."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1.build_pb2 import Build, BuildStep, WatchBuildResponse

from libs.store import Record
from services.builder.backends.base import Made

PREFIX = "builds/"


def build_of(row: Record, events: Iterable[bytes] = ()) -> Build:
    """Return a row as a build. `events` of one that is under way give its steps so far."""
    build = Build.FromString(row["outcome"])
    build.name = f"{PREFIX}{row['id']}"
    build.runtime = row["runtime"]
    build.state = row["state"]
    build.create_time.CopyFrom(timestamp(row["create_time"]))
    build.expire_time.CopyFrom(timestamp(row["expire_time"]))
    if row["end_time"] is not None:
        build.end_time.CopyFrom(timestamp(row["end_time"]))
    elif not build.steps:
        build.steps.extend(steps_of(events))
    return build


def made_of(build: str, uid: str, outcome: bytes) -> Made:
    """Return what a build that has ended, or is to end, has made."""
    ended = Build.FromString(outcome)
    return Made(build, uid, ended.artefact if ended.HasField("artefact") else None)


def steps_of(events: Iterable[bytes]) -> list[BuildStep]:
    """Return the steps that serialized events tell of, each as it was last said to be."""
    steps: list[BuildStep] = []
    for event in map(WatchBuildResponse.FromString, events):
        if not event.HasField("step"):
            continue
        if steps and steps[-1].stage == event.step.stage and not steps[-1].HasField("duration"):
            steps.pop()
        steps.append(event.step)
    return steps


def is_over(row: Record) -> bool:
    """Whether a build has ended."""
    state: Any = row["state"]
    return state in (Build.STATE_SUCCEEDED, Build.STATE_FAILED)


def timestamp(time: datetime) -> Timestamp:
    """Return a time of the database as a message."""
    result = Timestamp()
    result.FromDatetime(time)
    return result
