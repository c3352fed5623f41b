"""A heap of deadlines whose members can move and leave; pure, in nanoseconds since the epoch."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

# Stale heap items are cleared once they outnumber the living ones and this many.
_SLACK = 1024


class Deadlines(Generic[KeyT]):
    """When each key is due. Moving and removing are O(log n), amortised."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, KeyT]] = []
        self._current: dict[KeyT, tuple[int, int]] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._current

    def upsert(self, key: KeyT, at: int) -> None:
        """Make `key` due at `at`, wherever it was before."""
        # The counter orders keys of equal deadlines, and tells a live item from a stale one.
        self._counter += 1
        self._current[key] = (at, self._counter)
        heapq.heappush(self._heap, (at, self._counter, key))
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._rebuild()

    def remove(self, key: KeyT) -> bool:
        """Forget `key`; return whether it was known."""
        return self._current.pop(key, None) is not None

    def at(self, key: KeyT) -> int | None:
        """Return when `key` is due; None when it is unknown."""
        found = self._current.get(key)
        return found[0] if found else None

    def next(self) -> int | None:
        """Return the earliest deadline; None when there is none."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: int) -> list[KeyT]:
        """Remove and return what is due at `now`, earliest first."""
        due: list[KeyT] = []
        while (earliest := self.next()) is not None and earliest <= now:
            key = heapq.heappop(self._heap)[2]
            del self._current[key]
            due.append(key)
        return due

    def next_wake(self, window: int) -> int | None:
        """Return when to wake so that what is due within `window` ns is taken at once.

        That is the earliest deadline itself when it stands alone, and `window` later when others
        follow it closely.
        """
        earliest = self.next()
        if earliest is None:
            return None
        # In a binary heap the second smallest item is one of the root's two children.
        followers = self._heap[1:3]
        if any(at <= earliest + window for at, _, _ in followers):
            return earliest + window
        return earliest

    def _drop_stale(self) -> None:
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)

    def _is_live(self, item: tuple[int, int, KeyT]) -> bool:
        return self._current.get(item[2]) == item[:2]

    def _rebuild(self) -> None:
        self._heap = [item for item in self._heap if self._is_live(item)]
        heapq.heapify(self._heap)
