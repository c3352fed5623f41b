"""kill -9 of any part at any moment: nothing promised is lost, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from tests.conformance.door import Door
from tests.faults.ledger import Ledger
from tests.faults.platforms import FourProcesses, OneProcess, Platform

SETTINGS = {
    # Instances come and go within a round.
    "MAYFLY_IDLE_STOP": "3s",
}
LONGEST_DELAY = 1.5


async def kill_again_and_again(platform: Platform, rounds: int, seed: int) -> None:
    """Kill one part in each round, at a random moment of a working platform, and check."""
    rng = random.Random(seed)
    await asyncio.to_thread(platform.start)
    door = Door(platform.url)
    try:
        await kill_and_check(platform, door, rng, rounds, seed)
    finally:
        await door.http.aclose()
    await asyncio.to_thread(platform.stop)
    await asyncio.to_thread(platform.looker.wait_empty)


async def kill_and_check(
    platform: Platform, door: Door, rng: random.Random, rounds: int, seed: int
) -> None:
    """The rounds of a loop, and that nothing is left of functions in the end."""
    ledger = Ledger(door, rng, platform.looker.uids)
    # Every part in turn, in an order of the seed's.
    victims: list[str] = []
    for number in range(rounds):
        if not victims:
            victims = platform.victims()
            rng.shuffle(victims)
        victim = victims.pop()
        delay = rng.uniform(0, LONGEST_DELAY)
        where = f"round {number}, seed {seed}: {victim} killed after {delay:.3f} s"
        work = [asyncio.create_task(ledger.work()) for _ in range(3)]
        await asyncio.sleep(delay)
        await asyncio.to_thread(platform.kill, victim)
        await asyncio.sleep(rng.uniform(0, 0.3))
        for task in work:
            task.cancel()
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, asyncio.CancelledError), (where, outcome)
        try:
            await asyncio.to_thread(platform.recover, victim)
            await ledger.check()
        except Exception as error:
            error.add_note(f"{platform.log_tail()}\n{where}")
            raise
    await ledger.end_all()
    assert ledger.promises
    await check_nothing_left_of_functions(door, platform)


async def check_nothing_left_of_functions(door: Door, platform: Platform) -> None:
    """With all functions ended: no instance, no socket, no directory, no orphan."""
    looker = platform.looker
    uids = looker.uids

    def clean() -> None:
        looker.wait_until(
            lambda w: (
                not any(p.why.startswith("function") for p in w.processes)
                and not any(uid in s for s in w.sockets for uid in uids)
                and not w.mounts
                and not w.cgroups
            ),
            20,
            "no process, socket, mount or cgroup of a function",
        )

    await asyncio.to_thread(clean)
    names = [name for group in looker.directories().values() for name in group]
    left = [name for name in names if any(uid in name for uid in uids)]
    assert left == []
    response = await door.http.post("/v1/janitor:sweep", json={"dryRun": True})
    assert response.status_code == 200
    assert '"finding"' not in response.text, response.text


@pytest.mark.timeout(3600)
async def test_the_platform_as_one_process(
    data_dir: Path, kill_rounds: int, kill_seed: int
) -> None:
    platform = OneProcess(data_dir, SETTINGS)
    try:
        await kill_again_and_again(platform, kill_rounds, kill_seed)
    finally:
        with contextlib.suppress(RuntimeError, ProcessLookupError):
            platform.kill("standalone")
        await asyncio.to_thread(platform.looker.wait_empty, 15)


@pytest.mark.timeout(3600)
async def test_each_service_a_process_of_its_own(
    data_dir: Path, kill_rounds: int, kill_seed: int
) -> None:
    platform = FourProcesses(data_dir, SETTINGS)
    try:
        await kill_again_and_again(platform, kill_rounds, kill_seed)
    finally:
        platform.abandon()
        await asyncio.to_thread(platform.looker.wait_empty, 15)
