"""Builds without an image: files, and what they require, locked for another Python."""

from __future__ import annotations

import io
import secrets
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from mayfly.v1.build_pb2 import (
    Artefact,
    Build,
    GetBuildRequest,
    ListBuildsRequest,
    ListRuntimesRequest,
    WatchBuildRequest,
)

from services.builder.backends.bundle.backend import MOST_BUNDLE_BYTES, MOST_BYTES, too_large
from services.builder.config import Settings
from tests.builder.conftest import HANDLER, Replica, handler_with, running, until
from tests.builder.index import Index
from tests.builder.test_builds import SCRIPT, refusal, release, tar_of

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest_asyncio.fixture
async def bundling(settings: Callable[..., Settings]) -> AsyncIterator[Replica]:
    """A replica that makes bundles for a Python like its own."""
    async with running(settings(build_backends="bundle", base_python=HERE)) as one:
        yield one


def files_of(artefact: Artefact) -> dict[str, bytes]:
    """Unpack a bundle."""
    with tarfile.open(fileobj=io.BytesIO(artefact.bundle), mode="r:gz") as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in found.items() if file is not None}


async def test_a_handler_becomes_a_bundle_with_its_lock(index: Index, bundling: Replica) -> None:
    index.add("alpha", requires=("beta>=2",))
    index.add("beta", "2.5")
    source = handler_with("alpha")
    build = await bundling.create(handler=source, uid="a")
    assert build.state == Build.STATE_SUCCEEDED, build.failure
    artefact = build.artefact
    assert files_of(artefact) == {"handler.py": source.encode()}
    assert (artefact.kind, artefact.entry) == (Artefact.KIND_PYTHON_HANDLER, "handler.py")
    assert (artefact.directory, artefact.image, artefact.python_version) == ("", "", HERE)
    assert artefact.size_bytes == len(source)
    first, second = artefact.lock.splitlines()
    assert first.startswith("alpha==1.0 --hash=sha256:")
    assert second.startswith("beta==2.5 --hash=sha256:")
    assert build.steps[-1].detail == "2 packages locked"

    # The same requirements again: no index is asked.
    asked = len(index.requests)
    other = await bundling.create(handler=handler_with("alpha", more="# 2\n"), uid="b")
    assert other.artefact.lock == artefact.lock
    assert len(index.requests) == asked


async def test_only_the_creator_is_given_the_bundle(bundling: Replica) -> None:
    made = await bundling.create(handler=HANDLER, uid="a")
    again = await bundling.create(handler=HANDLER, uid="a")
    assert again.artefact == made.artefact
    assert files_of(again.artefact) == {"handler.py": HANDLER.encode()}
    got = (await bundling.builds.GetBuild(GetBuildRequest(name=made.name))).build
    listed = (await bundling.builds.ListBuilds(ListBuildsRequest())).builds
    stream = bundling.builds.WatchBuild(WatchBuildRequest(name=made.name))
    ended = [event async for event in stream][-1].ended
    for shown in (got, ended, *listed):
        assert (shown.artefact.bundle, shown.artefact.lock) == (b"", "")
        assert shown.artefact.python_version == HERE

    said = await release(bundling, "a")
    assert list(said.removed) == [f"artefact {made.name.removeprefix('builds/')[:6]}"]
    assert (await refusal(bundling.builds.GetBuild(GetBuildRequest(name=made.name)))).reason == 8


async def test_the_same_files_give_the_same_bundle(settings: Callable[..., Settings]) -> None:
    project = {"main.py": "print(1)\n", "pkg/a.py": "A = 1\n", "pkg/b.py": "B = 1\n"}
    made: list[Artefact] = []
    for name in (project, dict(reversed(project.items()))):
        chosen = settings(build_backends="bundle", base_python=HERE, build_retention=0)
        async with running(chosen) as replica:
            build = await replica.create(archive=tar_of(name), uid=secrets.token_hex(4))
            assert build.state == Build.STATE_SUCCEEDED, build.failure
            made.append(build.artefact)
    assert made[0] == made[1]
    assert (made[0].kind, made[0].entry) == (Artefact.KIND_SCRIPT, "main.py")
    assert sorted(files_of(made[0])) == ["main.py", "pkg/a.py", "pkg/b.py"]


async def test_a_script_keeps_its_settings(bundling: Replica) -> None:
    artefact = (await bundling.create(script=SCRIPT, uid="a")).artefact
    assert (artefact.kind, artefact.entry, artefact.settings.port) == (
        Artefact.KIND_SCRIPT,
        "script.py",
        9000,
    )
    assert artefact.lock == ""


async def test_what_has_no_wheel_is_refused_with_the_way_out(
    index: Index, bundling: Replica
) -> None:
    index.add_sdist("source-only".replace("-", "_"), "raise SystemExit('it ran')")
    failure = (await bundling.create(handler=handler_with("source_only"))).failure
    assert failure.reason == "SOURCE_UNSUPPORTED", failure
    assert "no wheel" in failure.message
    assert "it ran" not in failure.message
    assert "`kaniko`" in failure.fix
    assert "MAYFLY_BUILD_BACKENDS" in failure.fix


async def test_what_cannot_be_made_into_a_bundle_at_all(index: Index, bundling: Replica) -> None:
    broken = (await bundling.create(handler="def handler(:\n")).failure
    assert (broken.reason, broken.line) == ("SOURCE_SYNTAX", 1)
    pinned = '# /// script\n# requires-python = "<3.9"\n# dependencies = []\n# ///\n'
    python = (await bundling.create(handler=pinned + HANDLER)).failure
    assert python.reason == "PYTHON_UNSATISFIABLE"
    assert HERE in python.message
    missing = (await bundling.create(handler=handler_with("no-such"))).failure
    assert missing.reason == "PACKAGE_NOT_FOUND", missing
    noise = secrets.token_hex(MOST_BUNDLE_BYTES)
    large = (await bundling.create(handler=f"{HANDLER}# {noise}\n")).failure
    assert large.reason == "SOURCE_TOO_LARGE", large
    assert "ConfigMap" in large.message
    assert "knative" in large.fix
    go = await refusal(bundling.create(runtime="go", handler="package main"))
    assert go.reason_name == "SOURCE_UNSUPPORTED"
    assert "kaniko" in go.fix


async def test_it_is_said_where_the_syntax_is_checked_in_another_python(
    settings: Callable[..., Settings],
) -> None:
    async with running(settings(build_backends="bundle", base_python="3.99")) as replica:
        build = await replica.create(handler=HANDLER)
        assert build.artefact.python_version == "3.99"
        stream = replica.builds.WatchBuild(WatchBuildRequest(name=build.name))
        lines = [event.log async for event in stream if event.log]
        assert any("checked with Python" in line and "3.99" in line for line in lines)
        known = (await replica.builds.ListRuntimes(ListRuntimesRequest())).runtimes
        assert [(each.name, list(each.versions)) for each in known] == [("python", ["3.99"])]


@pytest.mark.parametrize(
    ("bundle", "lock", "fits"),
    [
        (MOST_BUNDLE_BYTES, 0, True),
        (MOST_BUNDLE_BYTES + 1, 0, False),
        (MOST_BUNDLE_BYTES, MOST_BYTES - MOST_BUNDLE_BYTES, True),
        (1000, MOST_BYTES, False),
    ],
)
def test_what_fits_into_a_config_map(bundle: int, lock: int, fits: bool) -> None:
    assert (too_large(bundle, lock) is None) is fits


async def test_a_build_goes_on_in_another_replica_that_shares_no_disk(
    index: Index, settings: Callable[..., Settings], data_dir: Path
) -> None:
    def replica(name: str) -> Settings:
        own = data_dir / name
        own.mkdir()
        return settings(build_backends="bundle", base_python=HERE, data_dir=own)

    index.add("alpha")
    index.failing = True
    async with running(replica("second")) as second:
        async with running(replica("first")) as first:
            build = await first.create(handler=handler_with("alpha"), uid="a", wait=0)
            await until(lambda: index.requests)
        # It was given back: whoever is left begins anew.
        index.failing = False
        stream = second.builds.WatchBuild(WatchBuildRequest(name=build.name))
        events = [event async for event in stream]
        assert events[-1].ended.state == Build.STATE_SUCCEEDED, events[-1]
        assert any("begins again" in event.log for event in events)
        made = await second.create(handler=handler_with("alpha"), uid="a")
        assert made.artefact.lock.startswith("alpha==1.0 ")
        assert second.files("temporary") == []


async def test_an_archive_with_a_dockerfile_is_for_somebody_else(bundling: Replica) -> None:
    archive = tar_of({"Dockerfile": "FROM scratch\n", "server.py": "print('unread')\n"})
    build = await bundling.create(archive=archive, uid="a")
    assert build.failure.reason == "SOURCE_UNSUPPORTED", build
    assert "kaniko" in build.failure.message
