"""Builds through gRPC."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mayfly.v1.build_pb2 import Artefact, Build, GetBuildRequest, WatchBuildRequest

from tests.builder.conftest import HANDLER, Replica

FASTAPI = """# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi>=0.115", "uvicorn>=0.30"]
# [tool.mayfly]
# name = "notes"
# port = 8000
# ttl = "10m"
# ///
import fastapi
"""


async def test_a_handler_becomes_a_file(replica: Replica) -> None:
    build = await replica.create(handler=HANDLER, uid="a")
    assert build.state == Build.STATE_SUCCEEDED, build
    artefact = build.artefact
    assert artefact.kind == Artefact.KIND_PYTHON_HANDLER
    path = Path(artefact.directory) / artefact.entry
    assert path.read_text() == HANDLER
    assert path.stat().st_mode & 0o777 == 0o644
    assert artefact.environment == ""
    assert [step.failed for step in build.steps] == [False, False]
    got = (await replica.builds.GetBuild(GetBuildRequest(name=build.name))).build
    assert got.artefact == artefact
    assert replica.files("temporary") == []
    times = []
    for number in range(50):
        source = HANDLER + f"# {number}\n"
        start = time.perf_counter()
        await replica.create(handler=source, uid="a")
        times.append(time.perf_counter() - start)
    print("p50 ms", sorted(times)[25] * 1000, "max", max(times) * 1000)


@pytest.mark.needs_index
async def test_a_script_gets_its_environment(replica: Replica) -> None:
    build = await replica.create(script=FASTAPI, uid="a")
    assert build.state == Build.STATE_SUCCEEDED, build
    print(build)
    events = [e async for e in replica.builds.WatchBuild(WatchBuildRequest(name=build.name))]
    print(events)
    start = time.perf_counter()
    again = await replica.create(script=FASTAPI + "# another\n", uid="b")
    print("warm ms", (time.perf_counter() - start) * 1000)
    assert again.artefact.environment == build.artefact.environment
    assert again.artefact.directory != build.artefact.directory
