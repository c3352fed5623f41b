"""Builds with requirements, against a package index on loopback and the real uv."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mayfly.v1.build_pb2 import Build, GetBuildRequest, WatchBuildRequest

from services.builder import service
from services.builder.config import Settings
from tests.builder.conftest import (
    Replica,
    handler_with,
    running,
    until,
)
from tests.builder.index import Index
from tests.builder.test_builds import refusal, release


def version_in(build: Build, module: str) -> str:
    """Import a module in a build's environment, from any directory, and return its VERSION."""
    python = Path(build.artefact.environment, "bin", "python")
    code = f"import {module}; print({module}.VERSION)"
    done = subprocess.run(
        [python, "-I", "-B", "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    return done.stdout.strip()


async def test_requirements_are_installed_and_shared(index: Index, replica: Replica) -> None:
    index.add("alpha", "1.0", requires=("beta>=2",))
    index.add("beta", "1.0")
    index.add("beta", "2.5")
    first = await replica.create(handler=handler_with("alpha"), uid="a")
    assert first.state == Build.STATE_SUCCEEDED, first.failure
    assert (version_in(first, "alpha"), version_in(first, "beta")) == ("1.0", "2.5")
    environment = Path(first.artefact.environment)
    assert environment.stat().st_mode & 0o777 == 0o755
    about = json.loads((environment / "mayfly.json").read_text())
    assert about["requirements"] == ["alpha==1.0", "beta==2.5"]
    assert list(environment.rglob("alpha.*.pyc")), "no bytecode"
    assert "2 packages installed" in first.steps[-1].detail

    asked = len(index.requests)
    start = time.perf_counter()
    second = await replica.create(handler=handler_with("alpha", more="# 2\n"), uid="b")
    assert time.perf_counter() - start < 2
    assert second.artefact.environment == first.artefact.environment
    assert second.steps[-1].detail.endswith("shared with 1 function")
    # Neither the index nor uv was asked: nothing was logged.
    assert len(index.requests) == asked
    stream = replica.builds.WatchBuild(WatchBuildRequest(name=second.name))
    assert [event.log async for event in stream if event.HasField("log")] == []
    # The same requirements in other words: resolved anew, to the same environment.
    third = await replica.create(handler=handler_with("beta", "alpha==1.0"), uid="c")
    assert third.artefact.environment == first.artefact.environment
    assert replica.files("temporary") == []


async def test_an_environment_outlives_its_functions_for_a_while(
    index: Index, replica: Replica
) -> None:
    index.add("alpha")
    build = await replica.create(handler=handler_with("alpha"), uid="a")
    said = await release(replica, "a")
    digest = build.artefact.environment_digest[:6]
    assert list(said.kept) == [f"environment {digest}"]
    assert not Path(build.artefact.directory).exists()
    again = await replica.create(handler=handler_with("alpha"), uid="b")
    assert again.artefact.environment == build.artefact.environment
    assert again.steps[-1].detail == f"environment {digest}, already there"


async def test_markers_that_leave_nothing_need_no_environment(
    index: Index, replica: Replica
) -> None:
    source = handler_with("alpha; python_version < '3'")
    assert (await replica.create(handler=source, uid="a")).artefact.environment == ""
    again = await replica.create(handler=source + "# 2\n", uid="a")
    assert again.artefact.environment == ""
    assert index.requests == []


async def test_the_same_requirements_at_the_same_time_are_installed_once(
    index: Index, replica: Replica
) -> None:
    index.add("alpha")
    made = await asyncio.gather(
        *(replica.create(handler=handler_with("alpha", more=f"# {n}\n"), uid="a") for n in range(4))
    )
    assert len({build.artefact.environment for build in made}) == 1
    assert sum(path.startswith("/files/") for path in index.requests) <= 2
    assert len(replica.files("environments")) == 1


@pytest.mark.parametrize(
    ("requirements", "reason", "said"),
    [
        (["no-such-package"], "PACKAGE_NOT_FOUND", "no-such-package"),
        (["alpha==9"], "PACKAGE_NOT_FOUND", "alpha"),
        (["alpha==1.0", "alpha==2.0"], "REQUIREMENTS_CONFLICT", "alpha"),
        (["alpha==1.0", "needy"], "REQUIREMENTS_CONFLICT", "needy"),
    ],
)
async def test_what_cannot_be_resolved(
    index: Index, replica: Replica, requirements: list[str], reason: str, said: str
) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0")
    index.add("needy", requires=("alpha>=2",))
    build = await replica.create(handler=handler_with(*requirements), uid="a")
    assert build.failure.reason == reason, build.failure
    assert said in build.failure.message
    assert build.failure.fix
    assert build.failure.log_tail
    assert replica.files("temporary") == []
    assert replica.files("environments") == []


async def test_code_of_source_distributions_runs_only_where_that_is_allowed(
    index: Index, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    index.add_sdist("sourced", f"open({str(ran)!r}, 'w')")
    async with running(settings()) as replica:
        build = await replica.create(handler=handler_with("sourced"), uid="a")
        assert build.failure.reason == "INSTALL_FAILED", build
        assert "MAYFLY_BUILD_SDISTS" in build.failure.fix
        assert not ran.exists()
    async with running(settings(build_sdists=True)) as replica:
        build = await replica.create(handler=handler_with("sourced"), uid="a")
        assert version_in(build, "sourced") == "1.0"
        assert ran.exists()


async def test_an_index_that_does_not_answer_is_asked_again_and_then_later(
    index: Index, replica: Replica
) -> None:
    index.add("alpha")
    index.failing = True
    source = handler_with("alpha")
    build = await replica.create(handler=source, uid="a")
    assert build.failure.reason == "INDEX_UNREACHABLE", build.failure
    assert len(index.requests) == 3
    assert sum("trying again" in line for line in build.failure.log_tail) == 2
    index.failing = False
    again = await replica.create(handler=source, uid="a")
    assert again.state == Build.STATE_SUCCEEDED, again.failure


async def test_a_package_that_comes_later_is_asked_for_again_only_later(
    index: Index, replica: Replica
) -> None:
    source = handler_with("alpha")
    assert (await replica.create(handler=source)).failure.reason == "PACKAGE_NOT_FOUND"
    asked = len(index.requests)
    assert (await replica.create(handler=source)).failure.reason == "PACKAGE_NOT_FOUND"
    assert len(index.requests) == asked


async def test_a_build_that_takes_too_long_is_ended_with_all_that_it_started(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha")
    index.hold()
    async with running(settings(build_timeout=2)) as replica:
        build = await replica.create(handler=handler_with("alpha"), uid="a")
        assert build.failure.reason == "BUILD_TIMEOUT", build.failure
        assert replica.programs() == []
        assert replica.files("temporary") == []
        index.open.set()
        again = await replica.create(handler=handler_with("alpha"), uid="a")
        assert again.state == Build.STATE_SUCCEEDED, again.failure


async def test_log_lines_come_while_the_build_goes_on(
    index: Index, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the replica that does the build, and at another one, which is told of them."""
    monkeypatch.setattr(service, "_LOOK_SECONDS", 600)
    index.add("alpha")
    index.hold()
    async with running(settings()) as one, running(settings()) as other:
        build = await one.create(handler=handler_with("alpha"), uid="a", wait=0)
        assert build.state == Build.STATE_RUNNING
        request = WatchBuildRequest(name=build.name)
        streams = [replica.builds.WatchBuild(request) for replica in (one, other)]
        for stream in streams:
            first = await stream.read()
            assert (first.sequence, first.step.stage) == (1, 1)
        await until(index.held.is_set)
        running_now = (await other.builds.GetBuild(GetBuildRequest(name=build.name))).build
        assert [step.HasField("duration") for step in running_now.steps] == [True, False]
        index.open.set()
        for stream in streams:
            rest = [event async for event in stream]
            numbers = [event.sequence for event in rest]
            assert numbers == list(range(2, len(rest) + 2))
            assert any("alpha" in event.log for event in rest)
            assert rest[-1].ended.state == Build.STATE_SUCCEEDED
        resumed = other.builds.WatchBuild(WatchBuildRequest(name=build.name, after=3))
        assert [event.sequence async for event in resumed] == numbers[2:]


async def test_a_build_nobody_waits_for_any_more_is_stopped(index: Index, replica: Replica) -> None:
    index.add("alpha")
    index.hold()
    build = await replica.create(handler=handler_with("alpha"), uid="a", wait=0)
    await until(index.held.is_set)
    assert replica.programs()
    async with asyncio.timeout(3):
        await release(replica, "a")
    assert replica.programs() == []
    assert replica.files("temporary") == []
    said = await refusal(replica.builds.GetBuild(GetBuildRequest(name=build.name)))
    assert said.reason_name == "NOT_FOUND"


async def test_a_damaged_environment_is_made_anew(index: Index, replica: Replica) -> None:
    index.add("alpha")
    build = await replica.create(handler=handler_with("alpha"), uid="a")
    (Path(build.artefact.environment) / "mayfly.json").unlink()
    again = await replica.create(handler=handler_with("alpha", more="# 2\n"), uid="a")
    assert again.artefact.environment == build.artefact.environment
    assert (Path(again.artefact.environment) / "mayfly.json").exists()
    assert version_in(again, "alpha") == "1.0"
    shutil.rmtree(again.artefact.environment)
    once_more = await replica.create(handler=handler_with("alpha"), uid="a")
    assert version_in(once_more, "alpha") == "1.0"


async def test_settings_of_a_project_around_the_data_directory_are_none_of_ours(
    index: Index, replica: Replica
) -> None:
    index.add("alpha")
    (replica.settings.data_dir / "pyproject.toml").write_text("[tool.uv]\nno-index = true\n")
    build = await replica.create(handler=handler_with("alpha"), uid="a")
    assert build.state == Build.STATE_SUCCEEDED, build.failure


async def test_environments_depend_on_the_resolved_versions(
    index: Index, settings: Callable[..., Settings]
) -> None:
    index.add("alpha", "1.0")
    async with running(settings(resolution_age=0)) as replica:
        old = await replica.create(handler=handler_with("alpha"), uid="a")
        index.add("alpha", "1.1")
        # uv keeps an index's page for ten minutes, unless the operator says otherwise.
        shutil.rmtree(replica.settings.data_dir / "builds" / "cache")
        new = await replica.create(handler=handler_with("alpha", more="# 2\n"), uid="b")
        assert (version_in(old, "alpha"), version_in(new, "alpha")) == ("1.0", "1.1")
