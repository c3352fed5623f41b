"""The cluster cache: versions, watches, acknowledgements, heartbeats."""

from __future__ import annotations

import asyncio
import time

from services.gateway.ads import resource
from services.gateway.snapshot import AckTracker, ClusterCache, Entry, Epoch, Sent


async def test_a_watch_sees_everything_once_then_changes() -> None:
    cache = ClusterCache()
    cache.put("a", b"1", 10.0)
    watch = cache.watch()
    assert watch.take(10) == ["a"]
    cache.put("a", b"1", 10.0)  # as it was
    assert watch.take(10) == []
    cache.put("a", b"1", 11.0)
    cache.put("b", b"1", 11.0)
    cache.delete("c")
    assert watch.take(1) == ["a"]
    await asyncio.wait_for(watch.wait(), 1)  # there is more
    assert watch.take(10) == ["b"]
    cache.delete("a")
    assert watch.take(10) == ["a"]
    cache.unwatch(watch)
    cache.put("d", b"1", 1.0)
    assert watch.take(10) == []


def test_the_version_changes_with_the_body_alone() -> None:
    cache = ClusterCache()
    cache.put("a", b"1", 10.0)
    first = cache.get("a")
    cache.put("a", b"1", 20.0)
    renewed = cache.get("a")
    cache.put("a", b"2", 20.0)
    changed = cache.get("a")
    assert first
    assert renewed
    assert changed
    assert first.version == renewed.version < changed.version
    assert renewed.expires == 20.0


def test_acknowledgements_are_of_whole_versions() -> None:
    seen: list[tuple[int, bool]] = []
    acks = AckTracker(lambda epoch, removed: seen.append((epoch.version, removed)))
    acks.reached(Epoch(1, 1))  # nothing was to be sent
    acks.reached(Epoch(1, 1))
    assert seen == [(1, False)]
    acks.sent("a", None, True)  # the first of two parts
    acks.sent("b", Epoch(1, 2), False)
    acks.reached(Epoch(1, 3))  # nothing of its own, but not before what is under way
    acks.answered("a")
    assert seen == [(1, False)]
    acks.answered("b")
    assert seen[1:] == [(3, False)]
    acks.sent("c", Epoch(1, 4), True)
    acks.sent("d", Epoch(1, 5), False)
    acks.answered("d")  # answers what came before it as well
    acks.answered("c")
    acks.answered("never sent")
    assert seen[2:] == [(5, True)]


def test_a_heartbeat_has_no_body() -> None:
    now = time.time()
    entry = Entry(b"body", 3, now + 60)
    new = resource("a", entry, None, now)
    assert new.resource.value == b"body"
    assert abs(new.ttl.ToNanoseconds() / 1e9 - 60) < 0.001
    renewed = resource("a", entry, Sent(3, now + 30), now)
    assert not renewed.HasField("resource")
    assert (renewed.version, abs(renewed.ttl.ToNanoseconds() / 1e9 - 60) < 0.001) == ("3", True)
    assert resource("a", entry, Sent(2, now + 30), now).HasField("resource")  # changed
    assert resource("a", entry, Sent(3, now + 0.1), now).HasField("resource")  # may be dropped
