"""Deadlines, reclamation, and what is found by looking."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mayfly.v1.build_pb2 import Build, HoldBuildRequest
from mayfly.v1.reclaimer_pb2 import (
    Deadline,
    ListResourcesRequest,
    ReclaimOutcome,
    ReclaimRequest,
    ReclaimTarget,
    Resource,
    WatchDeadlinesRequest,
)

from services.builder.backends.environment.programs import MARKER
from services.builder.config import Settings
from tests.builder.conftest import HANDLER, Replica, handler_with, in_seconds, running
from tests.builder.index import Index
from tests.builder.test_builds import release


async def deadline(replica: Replica, name: str) -> Deadline:
    """Wait until the janitor would be told of this deadline."""
    async with asyncio.timeout(20):
        async for response in replica.reclaimer.WatchDeadlines(WatchDeadlinesRequest()):
            for each in response.upserts:
                if each.name.startswith(name):
                    return each
    raise AssertionError


async def reclaim(replica: Replica, name: str, uid: str) -> ReclaimOutcome:
    """Reclaim one thing."""
    request = ReclaimRequest(targets=[ReclaimTarget(name=name, uid=uid)])
    return (await replica.reclaimer.Reclaim(request)).outcomes[0]


async def resources(replica: Replica, **request: Any) -> tuple[list[Resource], list[str]]:
    """List resources."""
    found: list[Resource] = []
    looked_at: list[str] = []
    async for response in replica.reclaimer.ListResources(ListResourcesRequest(**request)):
        found += response.resources
        looked_at += response.looked_at
    return found, looked_at


async def when_due(replica: Replica, told: Deadline) -> ReclaimOutcome:
    """Reclaim as a janitor does: at the deadline, by the owner's clock."""
    async with asyncio.timeout(20):
        while True:
            outcome = await reclaim(replica, told.name, told.uid)
            if outcome.result != ReclaimOutcome.RESULT_RENEWED:
                return outcome
            await asyncio.sleep(0.05)


async def test_an_environment_ends_its_retention_after_its_last_function(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    async with running(settings(build_retention=1)) as replica:
        build = await replica.create(handler=handler_with("alpha"), uid="a", lasts=3600)
        path = Path(build.artefact.environment)
        uid = path.name.partition(".")[2]
        name = f"environments/{build.artefact.environment_digest}"
        assert (await reclaim(replica, name, uid)).result == ReclaimOutcome.RESULT_RENEWED
        await release(replica, "a")
        told = await deadline(replica, "environments/")
        assert (told.name, told.uid) == (name, uid)
        outcome = await when_due(replica, told)
        assert outcome.result == ReclaimOutcome.RESULT_RECLAIMED, outcome
        assert [(r.type, r.id) for r in outcome.removed] == [("environment", str(path))]
        assert replica.files("environments") == []
        assert (await reclaim(replica, name, uid)).result == ReclaimOutcome.RESULT_NOT_FOUND
        found, looked_at = await resources(replica, uids=[uid])
        assert found == []
        assert any(what.startswith("environments (0)") for what in looked_at)
        again = await replica.create(handler=handler_with("alpha"), uid="b")
        assert again.state == Build.STATE_SUCCEEDED


async def test_an_environment_that_is_wanted_again_stays(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    async with running(settings(build_retention=1)) as replica:
        first = await replica.create(handler=handler_with("alpha"), uid="a")
        await release(replica, "a")
        told = await deadline(replica, "environments/")
        await replica.create(handler=handler_with("alpha", more="# 2\n"), uid="b")
        async with asyncio.timeout(10):
            while told.expire_time.ToNanoseconds() > in_seconds(-0.2).ToNanoseconds():
                outcome = await reclaim(replica, told.name, told.uid)
                assert outcome.result == ReclaimOutcome.RESULT_RENEWED
                await asyncio.sleep(0.1)
        assert Path(first.artefact.environment, "mayfly.json").exists()


async def test_an_environment_in_use_stays_however_old_it_is(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    async with running(settings(build_retention=0, build_timeout=5)) as replica:
        build = await replica.create(handler=handler_with("alpha"), uid="a", lasts=1)
        hold = HoldBuildRequest(name=build.name, function_uid="a", expire_time=in_seconds(900))
        await replica.builds.HoldBuild(hold)
        path = Path(build.artefact.environment)
        digest, _, uid = path.name.partition(".")
        async with asyncio.timeout(20):
            while True:
                outcome = await reclaim(replica, f"environments/{digest}", uid)
                assert outcome.result == ReclaimOutcome.RESULT_RENEWED
                if outcome.renewed_until.ToNanoseconds() < in_seconds(-0.2).ToNanoseconds():
                    break
                await asyncio.sleep(0.1)
        assert (path / "mayfly.json").exists()


async def test_a_build_that_nobody_released_ends_by_itself(
    settings: Callable[..., Settings],
) -> None:
    async with running(settings(build_retention=0)) as replica:
        build = await replica.create(handler=HANDLER, uid="gone", lasts=1)
        told = await deadline(replica, build.name)
        outcome = await when_due(replica, told)
        assert outcome.result == ReclaimOutcome.RESULT_RECLAIMED
        assert replica.files("artefacts") == []


async def test_a_hold_that_is_renewed_moves_the_deadline(
    settings: Callable[..., Settings],
) -> None:
    async with running(settings(build_retention=0)) as replica:
        build = await replica.create(handler=HANDLER, uid="a", lasts=1)
        told = await deadline(replica, build.name)
        hold = HoldBuildRequest(name=build.name, function_uid="a", expire_time=in_seconds(900))
        await replica.builds.HoldBuild(hold)
        outcome = await reclaim(replica, told.name, told.uid)
        assert outcome.result == ReclaimOutcome.RESULT_RENEWED
        assert outcome.renewed_until.ToNanoseconds() > in_seconds(800).ToNanoseconds()


async def test_holds_are_shown_as_the_functions(replica: Replica) -> None:
    build = await replica.create(handler=HANDLER, uid="a")
    found, _ = await resources(replica, uids=["a"])
    assert [(r.type, r.uid, build.name in r.id) for r in found] == [("row", "a", True)]
    await release(replica, "a")
    assert (await resources(replica, uids=["a"]))[0] == []


async def test_orphans_are_found_by_looking_and_removed(replica: Replica) -> None:
    kept = await replica.create(handler=HANDLER, uid="a")
    root = replica.settings.data_dir / "builds"
    stray = {
        root / "artefacts" / "aaaa.1111": "artefact",
        root / "environments" / "bbbb.2222": "environment",
        root / "temporary" / "3333.cafe.work": "workspace",
        root / "temporary" / "4444.cafe.files": "workspace",
    }
    for path in stray:
        path.mkdir()
        (path / "file").write_text("x")
    environ = {MARKER: "5555", "UV_CACHE_DIR": f"{root}/cache"}
    lost = subprocess.Popen(["/bin/sleep", "300"], env=environ)
    elsewhere = subprocess.Popen(["/bin/sleep", "300"], env={MARKER: "5555", "X": "/other/cache"})
    try:
        found, looked_at = await resources(replica, orphans_only=True)
        assert {(r.type, r.id) for r in found if r.type != "process"} == {
            (kind, str(path)) for path, kind in stray.items()
        }
        processes = [r for r in found if r.type == "process"]
        assert [r.id.partition("@")[0] for r in processes] == [str(lost.pid)]
        assert all(r.orphan and r.detail for r in found)
        assert len(looked_at) == 4
        others = [
            Resource(type="process", id="1@2"),
            Resource(type="directory", id=str(root / "artefacts")),
            Resource(type="artefact", id="/etc"),
            Resource(type="artefact", id=kept.artefact.directory),
        ]
        outcomes = (
            await replica.reclaimer.Reclaim(ReclaimRequest(orphans=[*found, *others]))
        ).outcomes
        results = [outcome.result for outcome in outcomes]
        assert results[: len(found)] == [ReclaimOutcome.RESULT_RECLAIMED] * len(found)
        assert results[len(found) :] == [
            *[ReclaimOutcome.RESULT_NOT_FOUND] * 3,
            ReclaimOutcome.RESULT_RENEWED,
        ]
        assert await asyncio.to_thread(lost.wait, 10) == -9
        assert elsewhere.poll() is None
        assert not any(path.exists() for path in stray)
        assert os.path.isdir(kept.artefact.directory)
        assert (await resources(replica, orphans_only=True))[0] == []
    finally:
        for process in (lost, elsewhere):
            process.kill()
            process.wait()


async def test_nothing_of_a_build_that_goes_on_is_an_orphan(index: Index, replica: Replica) -> None:
    index.add("alpha")
    index.hold()
    await replica.create(handler=handler_with("alpha"), uid="a", wait=0)
    await asyncio.to_thread(index.held.wait, 20)
    found, _ = await resources(replica)
    kinds = {resource.type for resource in found}
    assert {"workspace", "process"} <= kinds
    assert not [resource for resource in found if resource.orphan]


@pytest.mark.parametrize("count", [700])
async def test_many_functions_end_at_the_same_time(replica: Replica, count: int) -> None:
    made = await asyncio.gather(
        *(replica.create(handler=f"{HANDLER}# {n}\n", uid=f"f{n}") for n in range(count))
    )
    assert len({build.name for build in made}) == count
    await asyncio.gather(*(release(replica, f"f{n}") for n in range(count)))
    assert replica.files("artefacts") == []


async def test_a_hold_that_came_after_its_function_had_let_go_is_removed(replica: Replica) -> None:
    build = await replica.create(handler=HANDLER, uid="late", lasts=3600)
    found, _ = await resources(replica, uids=["late"])
    # The janitor verifies, finds it, and asks for its removal.
    holds = [resource for resource in found if resource.type == "row"]
    assert [hold.id for hold in holds] == [f"hold of {build.name}"]
    response = await replica.reclaimer.Reclaim(ReclaimRequest(orphans=holds))
    assert [o.result for o in response.outcomes] == [ReclaimOutcome.RESULT_RECLAIMED]
    found, _ = await resources(replica, uids=["late"])
    assert [resource for resource in found if resource.type == "row"] == []
