"""The API server, the database, the registry and the bucket are out of reach for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.cluster.release.load import Load
from tests.cluster.release.looking import wait_gone
from tests.cluster.release.outage import unreachable
from tests.cluster.release.site import Site
from tests.cluster.release.sources import ECHO, image_archive, new
from tests.conformance.door import Door, Json, id_of, state_of, time_of, until

pytestmark = pytest.mark.timeout(240)

API_SECONDS = 12.0
DATABASE_SECONDS = 8.0
# What a build may take while the registry or the bucket is away.
DEADLINE_SECONDS = 25.0
SLOW_STEP = "RUN sleep 5"
RECLAIM_SECONDS = 60.0


@asynccontextmanager
async def outage(site: Site, address: str, *namespaces: str) -> AsyncGenerator[None]:
    """Have nothing of these namespaces reach an address meanwhile."""
    away = unreachable(site.cluster, address, list(namespaces))
    await asyncio.to_thread(away.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(away.__exit__, None, None, None)


async def for_seconds(begin: float, seconds: float, probe: Callable[[], Awaitable[None]]) -> None:
    """Ask again and again until so many seconds after `begin`."""
    while time.monotonic() < begin + seconds:
        await probe()
        await asyncio.sleep(0.2)


async def reached(door: Door, function: Json, state: str, seconds: float) -> Json:
    """Wait until a function is in a state; another settled one is an error.

    One that is idle already was READY.
    """
    wanted = {"READY", "IDLE"} if state == "READY" else {state}

    async def probe() -> Json | None:
        found = await door.get(function)
        now = state_of(found)
        going = now in {"PENDING", "BUILDING", "DEPLOYING"}
        assert now in wanted or going, found.get("failure", found)
        return found if now in wanted else None

    return await until(probe, seconds, what=f"{id_of(function)} {state}", every=0.2)


async def building(door: Door, function: Json, line: str, seconds: float = 90) -> None:
    """Wait until a build prints a line."""
    async with asyncio.timeout(seconds), aclosing(door.events(function)) as events:
        async for event in events:
            if line in str(event):
                return
    raise AssertionError(f"the build never printed {line!r}")


async def test_the_api_server_is_away(site: Site, door: Door) -> None:
    steady = await door.ready(handler=ECHO)
    ending = await door.ready(handler=ECHO, ttl="20s")
    address = await asyncio.to_thread(lambda: site.api_server_address)
    renewed = await door.renew(ending, f"{API_SECONDS / 2:.0f}s")
    assert renewed.status_code == 200, renewed.text
    deadline = time_of(renewed.json()["expireTime"])
    begin = time.monotonic()
    async with Load({f"{door.url}/f/{id_of(steady)}": id_of(steady)}) as tally:
        async with outage(site, address, site.namespace):
            early = await door.create(handler=new(ECHO))
            late: list[float] = []

            async def refused_after_its_deadline() -> None:
                answer = await door.call(ending)
                now = time.time()
                if now > deadline + 0.5:
                    late.append(now)
                    assert answer.status_code == 404, (now - deadline, answer.text)

            await for_seconds(begin, API_SECONDS, refused_after_its_deadline)
            assert late, "its deadline did not come during the outage"
            assert state_of(await door.get(early)) not in {"FAILED", "READY"}
        function = await reached(door, early, "READY", 60)
        assert (await door.call(function)).text == id_of(function)
    tally.check()
    await door.verified_receipt(ending, RECLAIM_SECONDS)
    wanted = f"{site.label},mayfly.dev/uid={ending['uid']}"
    await asyncio.to_thread(
        wait_gone, lambda: site.looker.everything(wanted), RECLAIM_SECONDS, "of an ended function"
    )


async def test_the_database_is_away(site: Site, door: Door) -> None:
    """In the middle of a build, and of everything else."""
    steady = await door.ready(handler=ECHO)
    slow = await door.create(archive=image_archive(site.cluster.python_image, SLOW_STEP))
    await building(door, slow, SLOW_STEP)
    address = site.database_address
    begin = time.monotonic()
    async with Load({f"{door.url}/f/{id_of(steady)}": id_of(steady)}) as tally:
        async with outage(site, address, site.namespace):

            async def refused_with_a_reason() -> None:
                answer = await door.http.get(f"/v1/functions/{id_of(steady)}")
                assert answer.status_code == 503, (answer.status_code, answer.text)
                assert "UNAVAILABLE" in answer.text

            await refused_with_a_reason()
            await for_seconds(begin, DATABASE_SECONDS, refused_with_a_reason)

        async def answers() -> bool:
            return (await door.http.get(f"/v1/functions/{id_of(steady)}")).status_code == 200

        await until(answers, 20, what="the API after the outage", every=0.2)
        await reached(door, slow, "READY", 60)
    tally.check()
    assert (await door.call(slow)).text == "served"
    after = await door.ready(handler=new(ECHO))
    assert (await door.call(after)).text == id_of(after)
    pods = await asyncio.to_thread(site.looker.names, "pod", site.builds, site.label)
    assert pods == []


@pytest.fixture
async def short_builds(site: Site) -> AsyncGenerator[None]:
    """Builders whose builds may take DEADLINE_SECONDS."""
    setting = f"{DEADLINE_SECONDS:.0f}"
    await asyncio.to_thread(site.parts.set_environment, "builder", MAYFLY_BUILD_TIMEOUT=setting)
    yield
    await asyncio.to_thread(site.parts.set_environment, "builder", MAYFLY_BUILD_TIMEOUT="")


def sources(site: Site) -> dict[str, Json]:
    """What needs the registry: a build by a pod, and where images are made without one, that."""
    found: dict[str, Json] = {
        "pod": {"archive": image_archive(site.cluster.python_image, SLOW_STEP)}
    }
    if site.driver == "knative":
        found["layers"] = {"handler": new(ECHO)}
    return found


async def test_the_registry_is_away_for_a_moment(site: Site, door: Door) -> None:
    functions = [await door.create(**source) for source in sources(site).values()]
    await building(door, functions[0], SLOW_STEP)
    begin = time.monotonic()
    async with outage(site, site.registry_address, site.namespace, site.builds):
        if site.driver == "knative":
            functions.append(await door.create(handler=new(ECHO)))

        async def fine() -> None:
            assert "FAILED" not in {state_of(await door.get(f)) for f in functions}

        await for_seconds(begin, 8, fine)
    for function in functions:
        await reached(door, function, "READY", 90)
        assert (await door.call(function)).status_code == 200


@pytest.mark.usefixtures("short_builds")
@pytest.mark.parametrize("what", ["registry", "bucket"])
async def test_what_a_build_needs_stays_away(site: Site, door: Door, what: str) -> None:
    """FAILED with a reason before the deadline, and nothing left behind."""
    address = site.registry_address if what == "registry" else site.storage_address
    wanted = {"registry": "REGISTRY_UNREACHABLE", "bucket": "STORAGE_UNREACHABLE"}[what]
    tags = await asyncio.to_thread(lambda: set(site.release.images()))
    keys = await asyncio.to_thread(lambda: set(site.release.objects()))
    async with outage(site, address, site.namespace, site.builds):
        begin = time.monotonic()
        kinds = sources(site) if what == "registry" else {"pod": sources(site)["pod"]}
        functions = {kind: await door.create(**source) for kind, source in kinds.items()}
        for kind, function in functions.items():
            found = await reached(door, function, "FAILED", DEADLINE_SECONDS + 10)
            assert time.monotonic() < begin + DEADLINE_SECONDS + 10
            failure = found["failure"]
            assert failure["reason"] == wanted, (kind, failure)
            assert failure["stage"] == "STAGE_BUILD", (kind, failure)
            assert address in failure["message"], (kind, failure)
            assert failure["fix"], (kind, failure)
    for function in functions.values():
        await door.delete(function)

    def left() -> list[str]:
        looker = site.looker
        pods = looker.names("pod,secret", site.builds, f"{site.label},mayfly.dev/build")
        return [
            *pods,
            *sorted(set(site.release.images()) - tags),
            *sorted(set(site.release.objects()) - keys),
        ]

    await asyncio.to_thread(wait_gone, left, RECLAIM_SECONDS, f"after the {what} was away")
    assert (await door.ready(**next(iter(sources(site).values()))))["uid"]
