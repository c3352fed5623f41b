"""What somebody else changed or removed of a function's objects, and putting it right again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import structlog

from libs.kube.errors import KubeError
from libs.kube.informer import Change
from libs.kube.kinds import POD, Kind, Manifest, kind_of
from services.deployer.drivers.base import (
    DriverUnavailable,
    Notification,
    Reconciled,
    Wanted,
    Workload,
)
from services.deployer.drivers.cluster import names
from services.deployer.drivers.cluster.world import World

log = structlog.get_logger()

_AGAIN_SECONDS = 2.0
_AT_ONCE = 8
_SUFFIXES = {
    "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "Ki": Decimal(1 << 10), "Mi": Decimal(1 << 20), "Gi": Decimal(1 << 30),
}  # fmt: skip

Desired = Callable[[Workload], list[Manifest]]


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with its own digest, by which it is known later what an object was made from."""
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {names.DIGEST: digest(manifest)}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def digest(value: object) -> str:
    """A few hex digits that differ where values do."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def difference(desired: Manifest, found: Manifest | None) -> str | None:
    """Say what of `desired` is not so in an object; None: nothing, or it is not ours to judge.

    An object that was made from another manifest belongs to another revision or was made by
    another version of Mayfly; it is left alone.
    """
    if found is None or "deletionTimestamp" in found["metadata"]:
        return "was deleted"
    annotations = found["metadata"].get("annotations", {})
    made_from = annotations.get(names.DIGEST)
    if made_from not in (None, desired["metadata"]["annotations"][names.DIGEST]):
        return None
    path = _first_difference(desired, found, "")
    return None if path is None else f"was changed: {path.removeprefix('.')}"


def _first_difference(desired: object, found: object, path: str) -> str | None:
    if isinstance(desired, dict):
        if not isinstance(found, dict):
            return None if not desired and found is None else path
        for key, value in cast("dict[str, object]", desired).items():
            below = _first_difference(
                value, cast("dict[str, object]", found).get(key), f"{path}.{key}"
            )
            if below is not None:
                return below
        return None
    if isinstance(desired, list):
        wanted = cast("list[object]", desired)
        there = cast("list[object]", found) if isinstance(found, list) else []
        if len(wanted) != len(there):
            return path
        pairs = enumerate(zip(wanted, there, strict=True))
        parts = (_first_difference(one, two, f"{path}[{at}]") for at, (one, two) in pairs)
        return next((part for part in parts if part is not None), None)
    return None if _same(desired, found) else path


def _same(desired: object, found: object) -> bool:
    if desired == found:
        return True
    if desired in ("", 0, False) and found is None:
        return True  # what is empty is left out
    if isinstance(desired, str) and isinstance(found, str):
        one, two = _quantity(desired), _quantity(found)
        return one is not None and one == two
    return False


def _quantity(text: str) -> Decimal | None:
    """Read a quantity: the API server writes 128000000 as 128M."""
    number = text.rstrip("KMGkmi")
    factor = _SUFFIXES.get(text[len(number) :]) if text != number else Decimal(1)
    try:
        return Decimal(number) * factor if factor is not None else None
    except InvalidOperation:
        return None


class Drift:
    """Looks after functions whose objects change, or that it is told of.

    tell: takes a notification for each function that was put right.
    """

    def __init__(
        self, world: World, wanted: Wanted, desired: Desired, tell: Callable[[Notification], None]
    ) -> None:
        self._world = world
        self._wanted = wanted
        self._desired = desired
        self._tell = tell
        self._due: dict[str, None] = {}
        self._done: dict[str, list[str]] = {}
        self._look = asyncio.Event()
        self._seen: dict[tuple[Kind, str], Any] = {}

    def check(self, uids: Iterable[str]) -> None:
        """Compare what these functions have with what they want, soon."""
        self._due.update(dict.fromkeys(uids))
        self._look.set()

    def take(self, kind: Kind, change: Change) -> None:
        """Look at a function whose object was removed, or changed in what it asks for."""
        if kind == POD:
            return
        metadata = change.object["metadata"]
        # Kinds without a generation have no status, so that each change counts.
        state = (metadata["uid"], metadata.get("generation") or metadata["resourceVersion"])
        key = (kind, change.name)
        before = self._seen.get(key)
        if change.type == "deleted":
            self._seen.pop(key, None)
        else:
            self._seen[key] = state
        stranger = names.DIGEST not in metadata.get("annotations", {})
        changed = before is not None and (before != state or stranger)
        if change.type == "deleted" or changed:
            self.check([names.uid_of(change.object)])

    async def run(self) -> None:
        """Put right what is due, for ever."""
        slots = asyncio.Semaphore(_AT_ONCE)
        while True:
            await self._look.wait()
            self._look.clear()
            due, self._due = list(self._due), {}
            outcomes = await asyncio.gather(*(self._repaired(uid, slots) for uid in due))
            if failed := [uid for uid, done in zip(due, outcomes, strict=True) if not done]:
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.check, failed)

    async def _repaired(self, uid: str, slots: asyncio.Semaphore) -> bool:
        try:
            async with slots:
                await self._repair(uid)
        except (KubeError, DriverUnavailable) as error:
            log.warning("repair_again", uid=uid, error=str(error))
            return False
        return True

    async def _repair(self, uid: str) -> None:
        # What was done before something failed is told of, or undone, once nothing fails.
        done = self._done.setdefault(uid, [])
        workload = await self._wanted(uid)
        if workload is not None:
            for manifest in self._desired(workload):
                if what := await self._put_right(manifest):
                    done.append(what)
        if done and (workload is None or await self._wanted(uid) is None):
            await self._world.remove([uid])  # it ended meanwhile
        elif done:
            self._tell(Reconciled(uid, f"put right again: {'; '.join(done)}"))
        del self._done[uid]

    async def _put_right(self, manifest: Manifest) -> str | None:
        """Apply what differs; say what did. None: nothing, or it made no difference."""
        kind = kind_of(manifest)
        name = manifest["metadata"]["name"]
        if difference(manifest, self._world.one(kind, name)) is None:
            return None
        # What is remembered may be older than what was applied a moment ago.
        found = await self._world.cluster.get(kind, self._world.settings.namespace, name)
        what = difference(manifest, found)
        if what is None:
            return None
        now = await self._world.cluster.apply(manifest)
        changed = found is None or _version(found) != _version(now)
        return f"{kind.name} {name} {what}" if changed else None


def _version(manifest: Manifest) -> str:
    return manifest["metadata"]["resourceVersion"]
