"""What functions' containers write, as it comes, from where it was after a break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import structlog

from libs.kube.errors import Invalid, KubeError, NotFound
from libs.kube.kinds import POD, Manifest
from services.deployer.drivers.base import LogLine
from services.deployer.drivers.cluster import names, pods
from services.deployer.drivers.cluster.failures import FAILURE_PREFIX
from services.deployer.drivers.cluster.world import World

log = structlog.get_logger()

MAX_LINE = 8192
LINES_PER_SECOND = 2000
_OWN = frozenset({"queue-proxy"})
_LOOK_BACK = timedelta(seconds=10)
_AGAIN_SECONDS = (0.2, 5.0)


def parsed(line: str) -> tuple[str, float, str]:
    """A line with its time: the time as written, in seconds since the epoch, and the text.

    Raises ValueError for one without.
    """
    stamp, _, text = line.partition(" ")
    return stamp, pods.parse_time(stamp).timestamp(), text


class Budget:
    """How many lines of a second are taken; what is beyond is counted."""

    def __init__(self) -> None:
        self._second = 0
        self._left = 0
        self._dropped = 0

    def take(self, now: float) -> tuple[bool, int]:
        """Whether a line is taken, and how many the second before lost."""
        dropped = 0
        if int(now) != self._second:
            self._second, self._left = int(now), LINES_PER_SECOND
            dropped, self._dropped = self._dropped, 0
        if self._left > 0:
            self._left -= 1
            return True, dropped
        self._dropped += 1
        return False, dropped


class LogStreams:
    """One stream for each container that runs. Containers that were there before are read from
    a few seconds ago, which may repeat lines that another follower has had, but loses few."""

    def __init__(self, world: World, tell: Callable[[LogLine], None]) -> None:
        self._world = world
        self._tell = tell
        self._streams: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._done: set[tuple[str, str, int]] = set()
        self._began = datetime.now(UTC)

    def take(self, pod: Manifest) -> None:
        """Follow what has been started in a pod."""
        for name in pods.container_names(pod):
            if name in _OWN or not pods.has_started(pod, name):
                continue
            key = (pod["metadata"]["uid"], name, pods.restarts(pod, name))
            if key not in self._streams and key not in self._done:
                task = asyncio.create_task(self._stream(pod, name, key))
                self._streams[key] = task

    def forget(self, pod: Manifest) -> None:
        """A pod is gone; what is still being read of it is read to its end."""
        uid = pod["metadata"]["uid"]
        self._done = {key for key in self._done if key[0] != uid}

    async def close(self) -> None:
        """Let go of all streams."""
        tasks = list(self._streams.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _goes_on(self, pod: Manifest, name: str, key: tuple[str, str, int]) -> bool:
        """Whether a container that was followed still runs, as far as is known."""
        now = self._world.one(POD, pod["metadata"]["name"])
        return (
            now is not None
            and (now["metadata"]["uid"], name, pods.restarts(now, name)) == key
            and pods.started_at(now, name) is not None
        )

    async def _stream(self, pod: Manifest, name: str, key: tuple[str, str, int]) -> None:
        reader = _Reader(self._world, pod, name, self._began - _LOOK_BACK, self._tell)
        least, most = _AGAIN_SECONDS
        pause = least
        try:
            while True:
                try:
                    await reader.read()
                    if not self._goes_on(pod, name, key):
                        break
                    # Whoever passes the lines on ended: a kubelet or API server that restarts.
                except NotFound:
                    break
                except Invalid as error:  # not started after all, or its node has let go of it
                    log.info("no_logs", pod=pod["metadata"]["name"], error=str(error))
                    break
                except KubeError as error:
                    log.info("logs_again", pod=pod["metadata"]["name"], error=str(error))
                await asyncio.sleep(pause)
                pause = min(most, pause * 2)
        finally:
            self._streams.pop(key, None)
            self._done.add(key)


class _Reader:
    def __init__(
        self,
        world: World,
        pod: Manifest,
        name: str,
        not_before: datetime,
        tell: Callable[[LogLine], None],
    ) -> None:
        self._world = world
        self._uid = names.uid_of(pod)
        self._pod = pod["metadata"]["name"]
        self._container = name
        self._tell = tell
        created = pods.parse_time(pod["metadata"]["creationTimestamp"])
        self._since = not_before if created < not_before else None
        self._last = ""
        self._budget = Budget()

    async def read(self) -> None:
        """Until the container ends. Raises KubeError; then it goes on behind the last line."""
        lines = self._world.cluster.logs(
            self._world.settings.namespace,
            self._pod,
            self._container,
            follow=True,
            timestamps=True,
            since_time=self._since,
        )
        async with aclosing(lines):
            async for line in lines:
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            stamp, time, text = parsed(line)
        except ValueError:
            return  # a message of the node's about the logs themselves
        # Times have a fixed width but for zeros at the end, and whole seconds are asked for.
        at = stamp.removesuffix("Z").ljust(29, "0")
        if self._last and at <= self._last:
            return
        self._last = at
        self._since = datetime.fromtimestamp(int(time), UTC)
        if text.startswith(FAILURE_PREFIX):
            return  # for the platform, which tells it in its own words
        taken, dropped = self._budget.take(time)
        if dropped:
            self._say(time, f"({dropped} lines dropped: more than {LINES_PER_SECOND} a second)")
        if taken:
            for start in range(0, max(1, len(text)), MAX_LINE):
                self._say(time, text[start : start + MAX_LINE])

    def _say(self, time: float, text: str) -> None:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        self._tell(LogLine(self._uid, self._pod, "stdout", time, text))
