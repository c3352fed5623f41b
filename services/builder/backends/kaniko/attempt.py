"""One try of a build: its Secret and pod are made, followed, and what became of them is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from libs.blobs import Location
from libs.kube.cluster import Cluster
from libs.kube.errors import AlreadyExists, KubeError, NotFound
from libs.kube.informer import Change, Informer
from services.builder.backends.base import Progress
from services.builder.backends.kaniko import failures, pods
from services.builder.backends.kaniko.failures import Manifest, NoRoom, Outcome
from services.builder.backends.kaniko.output import Output
from services.builder.backends.kaniko.pods import Place, Try

# What a pod printed is there until it is deleted; this long it is waited for after its end.
_LAST_LINES_SECONDS = 5.0
_LOG_PAUSE_SECONDS = 0.5
_ENDED = ("Succeeded", "Failed")


class Attempt:
    """Follows one pod. `output` is what it printed."""

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        location: Location,
        one: Try,
        progress: Progress,
        room_seconds: float,
    ) -> None:
        """`room_seconds` is how long it may wait for a node that takes it."""
        self.output = Output()
        self._cluster = cluster
        self._place = place
        self._location = location
        self._one = one
        self._progress = progress
        self._room_seconds = room_seconds
        self._lines = 0
        self._began: float | None = None
        self._ended = asyncio.Event()
        self._logs: asyncio.Task[None] | None = None

    @property
    def silent(self) -> float:
        """How long the pod has run without a word, in seconds; 0 where it has said any."""
        if self._began is None or self._lines:
            return 0.0
        return asyncio.get_running_loop().time() - self._began

    async def run(self, informer: Informer, *, adopt: bool) -> Outcome:
        """Return what became of the pod, which is made unless it is adopted.

        Raises `KubeError` where it cannot be made, and TimeoutError when its time is over.
        """
        deadline = asyncio.get_running_loop().time() + self._one.seconds
        try:
            async with informer.subscribe() as changes:
                if not adopt:
                    await self._make()
                return await self._follow(changes, deadline)
        finally:
            if self._logs is not None:
                self._logs.cancel()
                with suppress(asyncio.CancelledError):
                    await self._logs

    async def _make(self) -> None:
        for manifest in (
            pods.secret(self._place, self._location, self._one),
            pods.pod(self._place, self._location, self._one),
        ):
            # It is there where an earlier call was answered to nobody.
            with suppress(AlreadyExists):
                await self._cluster.create(manifest)

    async def _follow(self, changes: AsyncIterator[Change], deadline: float) -> Outcome:
        loop = asyncio.get_running_loop()
        waits: NoRoom | None = None
        room_by = deadline
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, room_by)):
                    change = await anext(changes)
            except TimeoutError:
                if waits is not None and loop.time() < deadline:
                    return waits
                raise
            if change.name != self._one.name:
                continue
            pod = None if change.type == "deleted" else change.object
            await self._read(pod)
            found = failures.outcome(pod, self.output, self._place.host)
            if not isinstance(found, NoRoom):
                if found is not None:
                    return found
                waits, room_by = None, deadline
            elif waits is None:
                waits, room_by = found, loop.time() + self._room_seconds
                self._progress.log(f"the build's pod waits for room: {found.why}")

    async def _read(self, pod: Manifest | None) -> None:
        """Begin to read what the pod prints, and when it has ended wait for the rest."""
        if pod is None or not failures.is_started(pod):
            return
        if self._logs is None:
            self._began = asyncio.get_running_loop().time()
            self._logs = asyncio.create_task(self._copy())
        if pod.get("status", {}).get("phase") in _ENDED:
            self._ended.set()
            await asyncio.wait([self._logs], timeout=_LAST_LINES_SECONDS)
            if not self._lines:
                self._take(failures.last_words(pod).splitlines())

    async def _copy(self) -> None:
        """Copy the pod's lines into the build's log until all are read."""
        while True:
            # A stream may break at any time; one that began after the end has everything.
            complete = self._ended.is_set()
            number = 0
            try:
                lines = self._cluster.logs(
                    self._place.namespace, self._one.name, pods.CONTAINER, follow=True
                )
                async for line in lines:
                    number += 1
                    if number > self._lines:
                        self._lines = number
                        self._take([line])
            except NotFound:
                return
            except KubeError:
                complete = False
            if complete:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOG_PAUSE_SECONDS):
                    await self._ended.wait()

    def _take(self, lines: list[str]) -> None:
        for line in lines:
            if shown := self.output.read(line):
                self._progress.log(shown)
