"""Pods of every part are deleted while functions are made, called, renewed and ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

import httpx
import pytest

from tests.cluster.release.load import Load
from tests.cluster.release.looking import wait_gone
from tests.cluster.release.site import Site
from tests.conformance.door import Door, Json, id_of, until
from tests.faults.ledger import Ledger

ECHO = "def handler(event, ctx):\n    return ctx.function_id\n"
SLOW = (
    "import time\ndef handler(event, ctx):\n    print('begun', flush=True)\n"
    "    time.sleep(float(event['query']['seconds']))\n    return 'late'\n"
)
WORK_SECONDS = 2.0
SLOW_SECONDS = 6.0
RESIDUE_SECONDS = 60.0


async def _work_for(ledger: Ledger, seconds: float, blow: Awaitable[object]) -> None:
    """Work, have the blow in the middle of it, and go on a little."""
    tasks = [asyncio.create_task(ledger.work()) for _ in range(2)]
    await asyncio.wait(tasks, timeout=seconds)
    await blow
    await asyncio.wait(tasks, timeout=seconds / 2)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


@pytest.mark.timeout(420)
async def test_nothing_is_lost_doubled_or_left(site: Site, door: Door) -> None:
    """Builder, deployer and janitor, all pods of each at once, and one of the gateways."""
    uids: set[str] = set()
    ledger = Ledger(door, random.Random(4), uids, held_beyond_the_end=site.driver == "knative")
    steady = await door.ready(handler=ECHO)
    slow = await door.ready(handler=SLOW, timeout="60s")
    ledger.others |= {id_of(steady), id_of(slow)}
    answers = {f"{door.url}/f/{id_of(steady)}": id_of(steady)}
    for part, all_of_them, at_once in (
        ("deployer", True, False),
        ("builder", True, True),
        ("janitor", True, True),
        ("deployer", False, True),
    ):
        where = f"{part}, all: {all_of_them}, without time to end: {at_once}"
        try:
            async with Load(answers) as tally:
                # It may have gone to sleep, and nobody wakes it while there is no deployer.
                await door.call(slow, "?seconds=0")
                await tally.more(6)
                waiting = asyncio.create_task(door.call(slow, f"?seconds={SLOW_SECONDS}"))
                blow = asyncio.to_thread(
                    site.parts.kill, part, all_of_them=all_of_them, at_once=at_once
                )
                await _work_for(ledger, WORK_SECONDS, blow)
                assert (await waiting).text == "late"
                await asyncio.to_thread(site.parts.wait_ready, part)
            tally.check()
            await ledger.check()
            await asyncio.to_thread(_none_doubled, site, uids)
        except (AssertionError, httpx.HTTPError) as error:
            logs = [await asyncio.to_thread(site.parts.logs, each) for each in {part, "gateway"}]
            error.add_note("\n".join([where, *logs]))
            raise
    await ledger.end_all()
    assert len(ledger.promises) > 4
    await asyncio.to_thread(_nothing_left, site, uids)
    assert await site.swept(door, dry_run=True) == []


def _none_doubled(site: Site, uids: set[str]) -> None:
    kind = site.workload_kind
    found = site.looker.list(kind, site.functions, f"{site.label}")
    owners = [o["metadata"]["labels"]["mayfly.dev/uid"] for o in found]
    revisions = [o["metadata"]["labels"].get("mayfly.dev/revision", "") for o in found]
    pairs = list(zip(owners, revisions, strict=True))
    assert len(set(pairs)) == len(pairs), pairs
    assert set(owners) & uids, "none of the functions has an object"


def _nothing_left(site: Site, uids: set[str]) -> None:
    """No object of any kind with the uid of a function that has ended."""
    wanted = f"{site.label},mayfly.dev/uid in ({','.join(sorted(uids))})"
    wait_gone(lambda: site.looker.everything(wanted), RESIDUE_SECONDS, "objects of ended functions")


@pytest.mark.parametrize("all_of_them", [False, True], ids=["one", "all"])
async def test_a_gateway_ends_what_it_has_begun(site: Site, door: Door, all_of_them: bool) -> None:
    steady = await door.ready(handler=ECHO)
    slow = await door.ready(handler=SLOW, timeout="60s")
    answers = {f"{door.url}/f/{id_of(steady)}": id_of(steady)}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        url = f"{door.url}/f/{id_of(slow)}?seconds={SLOW_SECONDS}"
        begun = [asyncio.create_task(http.get(url)) for _ in range(4)]
        await _all_arrived(door, slow, len(begun))
        async with Load(answers) as tally:
            await asyncio.to_thread(site.parts.kill, "gateway", all_of_them=all_of_them)
            late = await asyncio.gather(*begun)
            await asyncio.to_thread(site.parts.wait_ready, "gateway")
    assert [(r.status_code, r.text) for r in late] == [(200, "late")] * len(begun)
    if not all_of_them:
        tally.check()

    async with Load(answers) as tally:
        await door.ready(handler=ECHO)
        await tally.more(5)
    tally.check(least=5)


async def _all_arrived(door: Door, function: Json, count: int) -> None:
    """Wait until requests are with the function, which says so."""

    async def begun() -> bool:
        return (await door.log_lines(function)).count("begun") >= count

    try:
        await until(begun, 15, what=f"{count} requests with the function", every=0.2)
    except AssertionError as error:
        error.add_note(f"its log: {await door.log_lines(function)}")
        raise
