"""What Envoy is to hold: clusters with versions and deadlines, and who has seen which of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# A deadline that comes sooner than this is not moved by a heartbeat, because Envoy may drop the
# cluster while the heartbeat is under way; the whole cluster is sent instead.
HEARTBEAT_MARGIN = 0.5


@dataclass(frozen=True)
class Entry:
    """A cluster: its serialized form, the count of its changes, and its end in Unix time.

    `endpoints`: its ClusterLoadAssignment, where that is not in the cluster itself.
    """

    body: bytes
    version: int
    expires: float
    endpoints: bytes = b""


@dataclass(frozen=True)
class Epoch:
    """A version of the routes, within one stream from the deployer."""

    stream: int
    version: int


class ClusterCache:
    """The clusters, and the streams to which their changes go."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._changes = 0
        self._watches: set[Watch] = set()
        self.epoch = Epoch(0, 0)

    def get(self, name: str) -> Entry | None:
        """Return a cluster by name."""
        return self._entries.get(name)

    def names(self) -> list[str]:
        """Return the names of all clusters."""
        return list(self._entries)

    def put(self, name: str, body: bytes, expires: float, endpoints: bytes = b"") -> None:
        """Set a cluster; nothing happens where it is as it was."""
        known = self._entries.get(name)
        self._changes += 1
        version = known.version if known is not None and known.body == body else self._changes
        made = Entry(body, version, expires, endpoints)
        if made == known:
            return
        self._entries[name] = made
        self._notify(name)

    def delete(self, name: str) -> None:
        """Remove a cluster; nothing happens where there is none."""
        if self._entries.pop(name, None) is not None:
            self._notify(name)

    def commit(self, epoch: Epoch) -> None:
        """Say that everything up to a version of the routes is in."""
        self.epoch = epoch
        for watch in self._watches:
            watch.wake()

    def watch(self) -> Watch:
        """Return a new watch, to which every cluster is a change."""
        watch = Watch(self._entries)
        self._watches.add(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch."""
        self._watches.discard(watch)

    def _notify(self, name: str) -> None:
        for watch in self._watches:
            watch.add(name)


class Watch:
    """The names that have changed since they were last taken."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._event = asyncio.Event()
        self._event.set()

    def add(self, name: str) -> None:
        """Note a change."""
        self._names[name] = None
        self._event.set()

    def wake(self) -> None:
        """Let the waiting side look again."""
        self._event.set()

    async def wait(self) -> None:
        """Return when there may be something new."""
        await self._event.wait()
        self._event.clear()

    def take(self, most: int) -> list[str]:
        """Return at most `most` changed names; they count as taken."""
        taken = list(self._names)[:most]
        for name in taken:
            del self._names[name]
        if self._names:
            self._event.set()
        return taken


@dataclass
class Sent:
    """What an Envoy was last sent of a cluster."""

    version: int
    expires: float

    def is_all_of(self, entry: Entry) -> bool:
        """Whether nothing of the cluster, its endpoints aside, is new."""
        return (self.version, self.expires) == (entry.version, entry.expires)


class AckTracker:
    """Which version of the routes an Envoy has taken, from the acknowledgements of its responses.

    `acked` is called with each epoch that it has taken in full, and whether one of the responses
    in between removed something.
    """

    def __init__(self, acked: Callable[[Epoch, bool], None]) -> None:
        self._acked = acked
        self._open: dict[str, tuple[Epoch | None, bool]] = {}
        self._last: Epoch | None = None

    def sent(self, nonce: str, epoch: Epoch | None, removed: bool) -> None:
        """Note a response that brings an Envoy to `epoch`; None when more of it is to come."""
        self._open[nonce] = (epoch, removed)

    def reached(self, epoch: Epoch) -> None:
        """Note that nothing more was to be sent for `epoch`."""
        if self._open:
            nonce, (_, removed) = self._open.popitem()
            self._open[nonce] = (epoch, removed)
        elif self._last != epoch:
            self._last = epoch
            self._acked(epoch, False)

    def answered(self, nonce: str) -> None:
        """Note that an Envoy answered a response; what was sent before it is answered as well."""
        if nonce not in self._open:
            return
        removed_any = False
        for earlier in list(self._open):
            epoch, removed = self._open.pop(earlier)
            removed_any = removed_any or removed
            if earlier == nonce:
                if epoch is not None:
                    self._last = epoch
                    self._acked(epoch, removed_any)
                return
