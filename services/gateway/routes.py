"""The table of routes: pure, keyed by function id, changed by uid, refused by deadline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

from mayfly.v1.function_pb2 import State
from mayfly.v1.route_pb2 import Route
from mayfly.v1.source_pb2 import Stage

from services.gateway.errors import ENDED, Problem

# Reached at least once, an instance of it is known to start: its time limit counts from here on.
_SETTLED = (State.STATE_READY, State.STATE_IDLE)
_REFUSED = (State.STATE_EXPIRED, State.STATE_RECLAIMING, State.STATE_RECLAIMED)


@dataclass(frozen=True)
class Entry:
    """A route, and what the gateway knows of it besides.

    `settled`: it has been READY once; an update that builds anew leaves it so.
    `used`: a request has come for it; before, Envoy needs no cluster. `reached`: it has answered
    through its ingress.
    """

    route: Route
    settled: bool = False
    used: bool = False
    reached: bool = False

    @property
    def expires(self) -> float:
        """When the lease ends, in seconds of Unix time."""
        return self.route.expire_time.ToNanoseconds() / 1e9

    @property
    def early(self) -> bool:
        """Whether the ingress that its endpoint is may not know the way to it yet."""
        return bool(self.route.host) and not self.settled

    @property
    def failed(self) -> bool:
        """Whether it cannot answer, with a reason in the route."""
        return self.route.state == State.STATE_FAILED

    @classmethod
    def of(cls, route: Route) -> Entry:
        """Return the entry of a route that is not in the table."""
        return cls(route, settled=route.state in _SETTLED)

    def ended(self, now: float) -> bool:
        """Whether its lease is over at `now`, whoever else says so."""
        return self.route.state in _REFUSED or self.expires <= now


class RouteTable:
    """Routes by function id."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def get(self, function_id: str) -> Entry | None:
        """Return the entry of a function, ended or not."""
        return self._entries.get(function_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self) -> list[str]:
        """Return all functions' ids."""
        return list(self._entries)

    def upsert(self, route: Route, *, used: bool = False) -> Entry:
        """Take a route that is new or has changed; return its entry."""
        known = self._entries.get(route.function_id)
        same = known is not None and known.route.uid == route.uid
        entry = Entry(
            route,
            settled=route.state in _SETTLED or (same and cast("Entry", known).settled),
            used=used or (same and cast("Entry", known).used),
            reached=same and cast("Entry", known).reached,
        )
        self._entries[route.function_id] = entry
        return entry

    def remove(self, function_id: str, uid: str) -> bool:
        """Forget a route; a newer function of the same id is left alone."""
        known = self._entries.get(function_id)
        if known is None or known.route.uid != uid:
            return False
        del self._entries[function_id]
        return True

    def note(self, function_id: str, uid: str, fact: Literal["used", "reached"]) -> bool:
        """Note that a function is used, or has answered by its ingress; return if that is news."""
        known = self._entries.get(function_id)
        if known is None or known.route.uid != uid or getattr(known, fact):
            return False
        self._entries[function_id] = replace(known, **{fact: True})
        return True

    def missing_from(self, uids: Iterable[str]) -> list[Route]:
        """Return the routes whose uid is not among `uids`: what a snapshot says is gone."""
        present = set(uids)
        return [entry.route for entry in self if entry.route.uid not in present]


def needs_cluster(entry: Entry, now: float) -> bool:
    """Whether Envoy is to reach the function by itself.

    Before it is settled the control process holds its requests, because their time limit begins
    only then; and before its first use, so that the first request can be seen and traced.
    """
    return bool(entry.route.endpoint) and _is_envoys(entry, now)


def is_between_endpoints(entry: Entry, now: float) -> bool:
    """Whether the function runs and Envoy has been reaching it, but at no endpoint just now."""
    return not entry.route.endpoint and _is_envoys(entry, now)


def _is_envoys(entry: Entry, now: float) -> bool:
    return (
        entry.used
        and entry.settled
        and not entry.route.cold
        and not entry.failed
        and not entry.ended(now)
    )


def refusal(entry: Entry, now: float) -> Problem | None:
    """Return why a request is refused; None when it is to be served or held."""
    if entry.ended(now):
        return ENDED
    if not entry.failed:
        return None
    failure = entry.route.failure
    return Problem(
        503,
        "UNAVAILABLE",
        failure.reason or "UNAVAILABLE",
        failure.message or "the function could not be started",
        failure.fix,
        Stage.Name(failure.stage).removeprefix("STAGE_").lower() if failure.stage else "",
    )
