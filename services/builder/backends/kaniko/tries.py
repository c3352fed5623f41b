"""Tries of a build, one after the other, until one has pushed or none is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence

from libs.blobs import BlobError, Bucket, Location, Unreachable
from libs.kube.cluster import Cluster
from libs.kube.errors import KubeError
from libs.kube.informer import Informer
from libs.kube.kinds import POD
from services.builder.backends.base import Order, Progress
from services.builder.backends.images import FunctionImages
from services.builder.backends.kaniko import failures, pods
from services.builder.backends.kaniko.attempt import Attempt
from services.builder.backends.kaniko.context import stream
from services.builder.backends.kaniko.explained import explained
from services.builder.backends.kaniko.failures import (
    Failed,
    Manifest,
    NoRoom,
    Outcome,
    Passing,
    Pushed,
    TakenAway,
)
from services.builder.backends.kaniko.pods import BUILD, INSTALLATION, UID, Place, Try
from services.builder.backends.kaniko.recipes import Recipe
from services.builder.failures import BuildFailed

_LEAST_PAUSE, _MOST_PAUSE = 0.5, 15.0
# A refusal is told at the end of this time only.
_SYNC_SECONDS = 3.0
# For what is asked when a build's time is over.
_ASK_SECONDS = 1.5


class Tries:
    """One build's tries, all before `deadline` (the loop's clock)."""

    def __init__(
        self,
        cluster: Cluster,
        bucket: Bucket,
        location: Location,
        images: FunctionImages,
        place: Place,
        deadline: float,
        room_seconds: float,
    ) -> None:
        """`location` is the bucket as pods reach it, with the keys that they get."""
        self._cluster = cluster
        self._bucket = bucket
        self._location = location
        self._images = images
        self._place = place
        self._deadline = deadline
        self._room_seconds = room_seconds
        self._pause = _LEAST_PAUSE

    async def until_pushed(
        self,
        order: Order,
        recipe: Recipe,
        key: str,
        index: Sequence[str],
        images: Sequence[str],
        progress: Progress,
    ) -> str:
        """Return the digest of the image. Raises `BuildFailed`."""
        place = self._place
        selector = f"{INSTALLATION}={place.installation},{BUILD}={order.id},{UID}={order.uid}"
        async with self._cluster.watch(POD, place.namespace, selector) as informer:
            await self._until_listed(informer, progress)
            number, adopt = _first(informer)
            interrupted = ""
            lost_time: BuildFailed | None = None
            while True:
                one = Try(
                    build=order.id,
                    uid=order.uid,
                    number=number,
                    context=key,
                    seconds=self._seconds(),
                    arguments=recipe.arguments,
                    index=index,
                    images=images,
                )
                if adopt:
                    progress.log(f"the pod {one.name} of the worker before goes on")
                else:
                    await self._put(key, recipe, progress)
                attempt = Attempt(
                    self._cluster, place, self._location, one, progress, self._room_seconds
                )
                outcome = await self._outcome(attempt, informer, adopt=adopt)
                if isinstance(outcome, Pushed):
                    return outcome.digest
                if isinstance(outcome, Failed):
                    if outcome.failure.reason == "BUILD_TIMEOUT":
                        raise lost_time or await self._too_late(attempt.silent, key)
                    raise explained(outcome.failure, order, recipe, attempt.output)
                if isinstance(outcome, NoRoom):
                    raise failures.not_started(outcome.why)
                if isinstance(outcome, TakenAway):
                    if interrupted:
                        raise failures.interrupted(interrupted, outcome.why)
                    interrupted = outcome.why
                    progress.log(f"{outcome.why}; it is begun again")
                else:
                    lost_time = outcome.failure
                    await self._wait(lost_time, progress)
                number, adopt = number + 1, False

    async def _outcome(self, attempt: Attempt, informer: Informer, *, adopt: bool) -> Outcome:
        began = asyncio.get_running_loop().time()
        while True:
            try:
                return await attempt.run(informer, adopt=adopt)
            except TimeoutError:
                return Failed(failures.timeout())
            except KubeError as error:
                outcome = failures.of_cluster(error)
                now = asyncio.get_running_loop().time()
                # Other builds' pods end, and leave their part of the quota.
                if not isinstance(outcome, NoRoom) or now - began > self._room_seconds:
                    return outcome
                await asyncio.sleep(self._next_pause())

    async def _put(self, key: str, recipe: Recipe, progress: Progress) -> None:
        said = f"{_where(self._bucket.location)} did not answer in a build's time"
        while True:
            now = asyncio.get_running_loop().time()
            try:
                # Its client waits longer than a build may, and says nothing when it is cut off.
                async with asyncio.timeout_at(max(self._deadline, now + _LEAST_PAUSE)):
                    with progress.span("upload"):
                        await self._bucket.put(key, stream(recipe.files))
                return
            except TimeoutError as error:
                raise failures.storage(said) from error
            except Unreachable as error:
                said = str(error)
                await self._wait(failures.storage(said), progress)
            except BlobError as error:
                raise failures.storage(str(error)) from error

    async def _too_late(self, silent: float, key: str) -> BuildFailed:
        """Return why a pod's time was over: one that is stuck cannot say itself what it lacks."""
        if not failures.is_stuck(silent):
            return failures.timeout()
        bucket, registry = _where(self._location), self._place.host
        bucket_why, registry_why = await asyncio.gather(
            _why_silent(self._bucket.exists(key), bucket),
            _why_silent(self._images.ask(), f"the registry {registry}"),
        )
        return failures.stuck(
            silent, bucket, registry, bucket_why=bucket_why, registry_why=registry_why
        )

    async def _until_listed(self, informer: Informer, progress: Progress) -> None:
        while True:
            try:
                return await informer.ready(min(_SYNC_SECONDS, self._seconds()))
            except KubeError as error:
                outcome = failures.of_cluster(error)
                if not isinstance(outcome, Passing):
                    raise _failure(outcome) from error
                await self._wait(outcome.failure, progress)

    async def _wait(self, failure: BuildFailed, progress: Progress) -> None:
        """Wait before the next try. Raises `failure` where there is no time for one."""
        pause = self._next_pause()
        if asyncio.get_running_loop().time() + pause >= self._deadline:
            raise failure
        progress.log(f"{failure.message}; tried again in {pause:.1f} s")
        await asyncio.sleep(pause)

    def _next_pause(self) -> float:
        pause = self._pause * random.uniform(0.8, 1.2)
        self._pause = min(_MOST_PAUSE, self._pause * 2)
        return pause

    def _seconds(self) -> int:
        return max(1, int(self._deadline - asyncio.get_running_loop().time()))


def _first(informer: Informer) -> tuple[int, bool]:
    """Return the number of the first try, and whether its pod is there already."""
    found = sorted(informer.objects.values(), key=_number)
    if not found:
        return 1, False
    last = found[-1]
    goes_on = last.get("status", {}).get("phase", "Pending") in ("Pending", "Running", "Succeeded")
    if goes_on and "deletionTimestamp" not in last["metadata"]:
        return _number(last), True
    return _number(last) + 1, False


def _number(pod: Manifest) -> int:
    return pods.number_of(pod["metadata"]["name"])


async def _why_silent(asked: Awaitable[object], what: str) -> str:
    """Return why something does not answer, "" where it does, whatever that is."""
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            await asked
    except TimeoutError:
        return f"{what} said nothing for {_ASK_SECONDS:.1f} s"
    except BuildFailed as error:
        return error.message
    except Unreachable as error:
        return str(error)
    except BlobError:
        return ""  # whatever it refuses: it answers
    return ""


def _where(location: Location) -> str:
    return f"bucket {location.bucket} at {location.endpoint_url or 'AWS'}"


def _failure(outcome: Outcome) -> BuildFailed:
    if isinstance(outcome, Failed | Passing):
        return outcome.failure
    return failures.not_started("the cluster does not say why")
