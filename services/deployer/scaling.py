"""How many instances a function gets, from what the gateways have open on it: pure decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass

DOWN_AFTER = 30.0
"""Seconds for which fewer instances have been enough before any of them ends: a start costs more
than half a minute of an instance that waits."""


@dataclass(frozen=True)
class Bounds:
    """What a function asked for. `idle_stop` is in seconds."""

    concurrency: int
    min_instances: int
    max_instances: int
    idle_stop: float


@dataclass(frozen=True)
class Load:
    """What a function is used for.

    in_flight: open requests and streams, over all gateways. unused: seconds since something was
    last open or began. calm: seconds for which fewer instances than there are have been enough.
    """

    in_flight: int
    unused: float
    calm: float = 0.0


def needed_instances(in_flight: int, bounds: Bounds) -> int:
    """Return how many instances `in_flight` requests fill, inside the bounds; 0 for none."""
    wanted = math.ceil(in_flight / max(1, bounds.concurrency))
    most = max(bounds.max_instances, bounds.min_instances, 1)
    return min(max(wanted, bounds.min_instances), most)


def desired_instances(current: int, load: Load, bounds: Bounds) -> int:
    """Return how many instances there should be now.

    More at once; fewer, but one, after `DOWN_AFTER` of calm; none after `idle_stop` without use,
    and only where `min_instances` is 0. What sleeps (`current` 0) is woken by a request that the
    gateway holds, not from here, unless something is open on it.
    """
    needed = needed_instances(load.in_flight, bounds)
    if needed >= current:
        return needed
    if needed == 0 and load.in_flight == 0 and load.unused >= bounds.idle_stop:
        return 0
    if load.calm >= DOWN_AFTER:
        return max(needed, 1)
    return current
