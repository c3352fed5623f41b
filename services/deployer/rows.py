"""A function's row, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from mayfly.v1.function_pb2 import State

# Something of the function can be reached or is being made.
RUNNABLE = frozenset({State.STATE_READY, State.STATE_IDLE})
# The lease has ended.
ENDED = frozenset({State.STATE_EXPIRED, State.STATE_RECLAIMING, State.STATE_RECLAIMED})


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One row of `functions`, as it was at `now` of the database's clock.

    `generation` counts what asks for a new deployment; `ready_generation` is the one that serves
    (0: none yet) and `failed_generation` the latest that could not. `artefact` is the build of
    `generation`, `serving_artefact` and `serving_spec` are what `ready_generation` runs.
    """

    uid: str
    id: str
    target: str
    request_id: str | None
    runtime: str
    labels: str
    spec: bytes
    state: int
    revision: int
    generation: int
    ready_generation: int
    failed_generation: int
    build: str
    artefact: bytes | None
    serving_spec: bytes | None
    serving_build: str
    serving_artefact: bytes | None
    hold_due: bool
    endpoint: str
    failure: bytes | None
    instances: int
    ttl: timedelta
    idle_timeout: timedelta | None
    create_time: datetime
    update_time: datetime
    expire_time: datetime
    idle_from: datetime | None
    last_use_time: datetime | None
    busy: bool
    ended_time: datetime | None
    end_reason: int
    reclaim_time: datetime | None
    outcome: bytes | None
    traceparent: str
    trace_id: str
    parent_span_id: str
    version: int
    event_sequence: int
    log_lines: int
    claim_owner: str | None
    claim_until: datetime | None
    now: datetime

    @property
    def name(self) -> str:
        """`functions/{id}`."""
        return f"functions/{self.id}"

    @property
    def ended(self) -> bool:
        """Whether the lease has ended, noticed by somebody or not."""
        return self.ended_time is not None or self.expire_time <= self.now

    @property
    def settled(self) -> bool:
        """Whether nothing is being built or deployed for it."""
        return self.ended or self.generation <= max(self.ready_generation, self.failed_generation)


_COLUMNS = tuple(field.name for field in fields(FunctionRow))


def row_of(record: Mapping[str, Any]) -> FunctionRow:
    """Return the row of a record that has all columns and `now`."""
    return FunctionRow(*(record[column] for column in _COLUMNS))


def deadline_of(row: FunctionRow) -> datetime:
    """Return when it ends as far as the row tells; the same rule as `deadline` in the schema."""
    if row.idle_timeout is None or row.busy or row.idle_from is None:
        return row.expire_time
    used = max(row.idle_from, row.last_use_time or row.idle_from)
    return min(row.expire_time, used + row.idle_timeout)
