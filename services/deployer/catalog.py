"""What this replica knows of all functions that are not reclaimed: routes and deadlines.

A cache of rows, fed by the rows that this replica writes and by notifications of what others
wrote; a row's version decides which of two is newer. Routes and deadlines follow from it, and
their readers are told which functions changed, each once however often it did.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from mayfly.v1.function_pb2 import State
from mayfly.v1.reclaimer_pb2 import Deadline
from mayfly.v1.route_pb2 import Route

from services.deployer.effective import Defaults
from services.deployer.events import utcnow
from services.deployer.rows import RUNNABLE, FunctionRow, deadline_of
from services.deployer.view import deadline_message, route_of

_REMEMBER_GONE = 20_000
# Cold ones are woken by whoever calls them; failed ones are told why.
_ROUTED_WITHOUT_ENDPOINT = RUNNABLE | {State.STATE_FAILED}


@dataclass(slots=True)
class Entry:
    """One function; messages are kept serialized, which is how they are small."""

    id: str
    version: int
    state: int
    ended: bool
    expire_time: datetime
    deadline: datetime
    deadline_message: bytes
    route: bytes | None
    """None: there is nothing to send, not even why it cannot be reached."""


class Feed:
    """The functions that changed since a reader last looked."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._pending: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, uid: str, function_id: str) -> None:
        """Say that a function changed."""
        self._pending[uid] = function_id
        self.changed.set()

    def take(self, most: int) -> list[tuple[str, str]]:
        """Return and forget up to `most` (uid, id) in the order of their first change."""
        taken: list[tuple[str, str]] = []
        while self._pending and len(taken) < most:
            uid = next(iter(self._pending))
            taken.append((uid, self._pending.pop(uid)))
        if not self._pending:
            self.changed.clear()
        return taken


class Catalog:
    """Functions by uid, and the feeds of those who follow them."""

    def __init__(self, defaults: Defaults) -> None:
        self.entries: dict[str, Entry] = {}
        self.closed = False
        """Followers end their streams."""
        self.live: dict[str, str] = {}
        """The uid of each id that is in use."""
        self._defaults = defaults
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._route_feeds: set[Feed] = set()
        self._deadline_feeds: set[Feed] = set()
        self._observers: list[Callable[[FunctionRow], None]] = []

    def observe(self, observer: Callable[[FunctionRow], None]) -> None:
        """Call `observer` with every row that is news."""
        self._observers.append(observer)

    def follow_routes(self) -> Feed:
        """Return a feed of functions whose route changes from now on."""
        feed = Feed()
        self._route_feeds.add(feed)
        return feed

    def follow_deadlines(self) -> Feed:
        """Return a feed of functions whose deadline changes from now on."""
        feed = Feed()
        self._deadline_feeds.add(feed)
        return feed

    def close(self) -> None:
        """Have all followers end: this replica stops."""
        self.closed = True
        for feed in self._route_feeds | self._deadline_feeds:
            feed.changed.set()

    def unfollow(self, feed: Feed) -> None:
        """End a feed."""
        self._route_feeds.discard(feed)
        self._deadline_feeds.discard(feed)

    def update(self, rows: Iterable[FunctionRow]) -> None:
        """Take rows that were read or written; older ones than those known are ignored."""
        for row in rows:
            known = self.entries.get(row.uid)
            if row.uid in self._gone or (known is not None and known.version >= row.version):
                continue
            self._take(row, known)
            for observer in self._observers:
                observer(row)

    def foresee(self, row: FunctionRow) -> None:
        """Take what is true already and still being written; `row` has the version before that."""
        known = self.entries.get(row.uid)
        if row.uid not in self._gone and (known is None or not known.ended):
            self._take(row, known)

    def route(self, uid: str) -> Route | None:
        """Return the route of a function that lives; None when there is none to send."""
        entry = self.entries.get(uid)
        if entry is None or entry.route is None or entry.expire_time <= utcnow():
            return None
        return Route.FromString(entry.route)

    def deadline(self, uid: str) -> Deadline | None:
        """Return the deadline of a function that is not reclaimed."""
        entry = self.entries.get(uid)
        return Deadline.FromString(entry.deadline_message) if entry else None

    def retract(self, function_id: str, uid: str) -> None:
        """Tell the gateways once more that a route is gone."""
        for feed in self._route_feeds:
            feed.add(uid, function_id)

    def last_uids(self) -> dict[str, str]:
        """Return the latest uid of each id, of those remembered; ended functions included."""
        return {id_: uid for uid, id_ in self._gone.items()} | {
            entry.id: uid for uid, entry in self.entries.items()
        }

    def _take(self, row: FunctionRow, known: Entry | None) -> None:
        ended = row.ended_time is not None
        if row.state == State.STATE_RECLAIMED:
            self._forget(row, known)
            return
        entry = Entry(
            id=row.id,
            version=row.version,
            state=row.state,
            ended=ended,
            expire_time=row.expire_time,
            deadline=deadline_of(row),
            deadline_message=deadline_message(row).SerializeToString(deterministic=True),
            route=None if ended else self._route(row),
        )
        self.entries[row.uid] = entry
        if not ended:
            self.live[row.id] = row.uid
        elif self.live.get(row.id) == row.uid:
            del self.live[row.id]
        if entry.route != (known.route if known else None):
            _tell(self._route_feeds, row)
        if _deadline_is_news(known, entry):
            _tell(self._deadline_feeds, row)

    def _route(self, row: FunctionRow) -> bytes | None:
        if not row.endpoint and row.state not in _ROUTED_WITHOUT_ENDPOINT:
            return None
        return route_of(row, self._defaults).SerializeToString(deterministic=True)

    def _forget(self, row: FunctionRow, known: Entry | None) -> None:
        self._gone[row.uid] = row.id
        if len(self._gone) > _REMEMBER_GONE:
            self._gone.popitem(last=False)
        if self.live.get(row.id) == row.uid:
            del self.live[row.id]
        if known is None:
            return
        del self.entries[row.uid]
        if known.route is not None:
            _tell(self._route_feeds, row)
        _tell(self._deadline_feeds, row)


def _tell(feeds: set[Feed], row: FunctionRow) -> None:
    for feed in feeds:
        feed.add(row.uid, row.id)


def _deadline_is_news(known: Entry | None, entry: Entry) -> bool:
    """An idle deadline that moves away is no news: whoever wakes for the old one is told then."""
    if known is None or known.ended != entry.ended or known.expire_time != entry.expire_time:
        return True
    return entry.deadline < known.deadline
