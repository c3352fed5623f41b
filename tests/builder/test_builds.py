"""Builds through gRPC, without packages."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mayfly.v1.build_pb2 import (
    Artefact,
    Build,
    GetBuildRequest,
    HoldBuildRequest,
    ListBuildsRequest,
    ListRuntimesRequest,
    ReleaseBuildRequest,
    WatchBuildRequest,
)
from mayfly.v1.source_pb2 import Stage

from libs.rpc.errors import from_rpc_error
from services.builder.config import Settings
from tests.builder.conftest import HANDLER, Replica, in_seconds, running

SCRIPT = "# /// script\n# dependencies = []\n# [tool.mayfly]\n# port = 9000\n# ///\nprint(1)\n"


def tar_of(files: dict[str, str]) -> bytes:
    """Return a tar.gz of the files."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return whole.getvalue()


async def release(replica: Replica, uid: str, name: str = "") -> Any:
    """Give up a hold."""
    request = ReleaseBuildRequest(name=name, function_uid=uid)
    return await replica.builds.ReleaseBuild(request)


async def refusal(call: Any) -> Any:
    """Return what a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    said = from_rpc_error(raised.value)
    assert said.message
    return said


async def test_a_handler_becomes_a_file(replica: Replica) -> None:
    build = await replica.create(handler=HANDLER, uid="a")
    assert build.state == Build.STATE_SUCCEEDED, build
    artefact = build.artefact
    assert artefact.kind == Artefact.KIND_PYTHON_HANDLER
    path = Path(artefact.directory) / artefact.entry
    assert path.read_text() == HANDLER
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert os.access(artefact.interpreter, os.X_OK)
    assert (artefact.environment, artefact.size_bytes) == ("", len(HANDLER))
    assert [(step.stage, step.failed) for step in build.steps] == [
        (Stage.STAGE_CHECK, False),
        (Stage.STAGE_BUILD, False),
    ]
    got = (await replica.builds.GetBuild(GetBuildRequest(name=build.name))).build
    assert got == build
    assert replica.files("temporary") == []


async def test_a_script_brings_its_settings(replica: Replica) -> None:
    build = await replica.create(script=SCRIPT)
    assert build.artefact.kind == Artefact.KIND_SCRIPT
    assert (build.artefact.entry, build.artefact.settings.port) == ("script.py", 9000)


async def test_the_same_content_is_one_build_and_goes_with_its_last_function(
    replica: Replica,
) -> None:
    first = await replica.create(handler=HANDLER, uid="a")
    second = await replica.create(handler=HANDLER, uid="b")
    other = await replica.create(handler=HANDLER + "\n", uid="a")
    assert (first.name, first.artefact) == (second.name, second.artefact)
    assert other.name != first.name
    said = await release(replica, "a", first.name)
    assert list(said.removed) == []
    assert "other functions" in said.kept[0]
    assert Path(first.artefact.directory).exists()
    said = await release(replica, "b")
    assert list(said.removed) == [f"artefact {first.name[7:13]}"]
    assert not Path(first.artefact.directory).exists()
    assert (await refusal(replica.builds.GetBuild(GetBuildRequest(name=first.name)))).code.name == (
        "NOT_FOUND"
    )
    assert Path(other.artefact.directory).exists()
    await release(replica, "a")
    assert replica.files("artefacts") == []
    assert list((await release(replica, "a")).removed) == []


async def test_what_was_released_can_be_built_again(replica: Replica) -> None:
    first = await replica.create(handler=HANDLER, uid="a")
    await release(replica, "a")
    again = await replica.create(handler=HANDLER, uid="b")
    assert again.name == first.name
    assert Path(again.artefact.directory, "handler.py").exists()


async def test_an_artefact_that_is_gone_is_built_again_for_all(replica: Replica) -> None:
    first = await replica.create(handler=HANDLER, uid="a")
    path = Path(first.artefact.directory, "handler.py")
    path.unlink()
    again = await replica.create(handler=HANDLER, uid="b")
    assert again.artefact.directory == first.artefact.directory
    assert path.read_text() == HANDLER
    events = [e async for e in replica.builds.WatchBuild(WatchBuildRequest(name=again.name))]
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("source", "reason", "stage"),
    [
        ({"handler": "def handler(e, c):\n    return (1\n"}, "SOURCE_SYNTAX", Stage.STAGE_BUILD),
        ({"handler": "x = 1\n"}, "HANDLER_MISSING", Stage.STAGE_BUILD),
        ({"script": "print(1)\n"}, "SCRIPT_BLOCKS", Stage.STAGE_BUILD),
        ({"script": SCRIPT + SCRIPT}, "SCRIPT_BLOCKS", Stage.STAGE_BUILD),
        ({"script": SCRIPT.replace("9000", '"x"')}, "SCRIPT_METADATA", Stage.STAGE_BUILD),
        ({"script": SCRIPT.replace("[]", '["./x"]')}, "REQUIREMENT_REFUSED", Stage.STAGE_BUILD),
        (
            {"script": SCRIPT.replace("[tool.mayfly]", "[tool.uv]\n# no-index = true")},
            "INDEX_REFUSED",
            Stage.STAGE_BUILD,
        ),
        (
            {"script": SCRIPT.replace("[]", '[]\n# requires-python = ">=4"')},
            "PYTHON_UNSATISFIABLE",
            Stage.STAGE_BUILD,
        ),
        ({"archive": b"no archive"}, "ARCHIVE_INVALID", Stage.STAGE_CHECK),
    ],
)
async def test_failures(replica: Replica, source: Any, reason: str, stage: int) -> None:
    build = await replica.create(uid="a", **source)
    assert build.state == Build.STATE_FAILED
    assert (build.failure.reason, build.failure.stage) == (reason, stage), build
    assert build.failure.message
    assert build.failure.fix
    assert build.steps[-1].failed
    assert build.steps[-1].stage == stage
    assert replica.files("temporary") == []
    assert replica.files("artefacts") == []
    # A permanent failure is answered from its row.
    again = await replica.create(uid="b", **source)
    assert again.create_time == build.create_time


async def test_what_cannot_be_built_is_refused(settings: Callable[..., Settings]) -> None:
    async with running(settings(max_source_bytes=100)) as replica:
        cases: dict[str, dict[str, Any]] = {
            "INVALID_SOURCE": {},
            "UNKNOWN_RUNTIME": {"runtime": "cobol", "handler": HANDLER},
            "SOURCE_TOO_LARGE": {"handler": HANDLER + "#" * 100},
            "SOURCE_UNSUPPORTED": {"image": "localhost/x"},
        }
        for reason, source in cases.items():
            said = await refusal(replica.create(**source))
            assert said.reason_name == reason
            assert said.code.name == "INVALID_ARGUMENT"
            assert said.fix
        assert (await refusal(replica.create(handler=""))).reason_name == "INVALID_SOURCE"
        go_script = replica.create(runtime="go", script=SCRIPT)
        assert (await refusal(go_script)).reason_name in ("SOURCE_UNSUPPORTED", "SOURCE_TOO_LARGE")


async def test_names_and_tokens_are_checked(replica: Replica) -> None:
    builds = replica.builds
    wrong = await refusal(builds.GetBuild(GetBuildRequest(name="functions/x")))
    assert wrong.reason_name == "INVALID_FIELD"
    for name in ("builds/none", "builds/x%00y"):
        assert (await refusal(builds.GetBuild(GetBuildRequest(name=name)))).code.name == "NOT_FOUND"
    hold = HoldBuildRequest(name="builds/none", function_uid="a", expire_time=in_seconds(9))
    assert (await refusal(builds.HoldBuild(hold))).code.name == "NOT_FOUND"
    for token in ("abc", "", base64.urlsafe_b64encode(b"x:1:2").decode()):
        request = ListBuildsRequest(page_token=token)
        if token:
            assert (await refusal(builds.ListBuilds(request))).reason_name == "INVALID_PAGE_TOKEN"
        else:
            assert list((await builds.ListBuilds(request)).builds) == []


async def test_pages_hold_every_build_once_newest_first(replica: Replica) -> None:
    made = [(await replica.create(handler=f"{HANDLER}# {n}\n")).name for n in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        request = ListBuildsRequest(page_size=3, page_token=token)
        page = await replica.builds.ListBuilds(request)
        seen += [build.name for build in page.builds]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]


async def test_a_project_as_an_archive(replica: Replica) -> None:
    files = {"handler.py": "import words\n" + HANDLER, "words.py": "x = 1\n"}
    build = await replica.create(archive=tar_of(files), uid="a")
    artefact = build.artefact
    assert (artefact.kind, artefact.entry) == (Artefact.KIND_PYTHON_HANDLER, "handler.py")
    assert sorted(path.name for path in Path(artefact.directory).iterdir()) == sorted(files)


async def test_runtimes_say_what_can_be_used(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    async with running(settings(go="")) as replica:
        answer = await replica.builds.ListRuntimes(ListRuntimesRequest())
        runtimes = {runtime.name: runtime for runtime in answer.runtimes}
        assert runtimes["python"].available
        assert runtimes["python"].versions
        assert (await replica.create(handler=runtimes["python"].example)).state == (
            Build.STATE_SUCCEEDED
        )
        go = runtimes["go"]
        if go.available:
            pytest.skip("there is a Go toolchain in /bin")
        assert "PATH" in go.unavailable_reason
        said = await refusal(replica.create(runtime="go", handler=go.example))
        assert said.reason_name == "UNKNOWN_RUNTIME"
        assert said.fix


@pytest.mark.needs_go
@pytest.mark.timeout(300)
async def test_go_is_compiled_and_its_errors_have_a_place(replica: Replica) -> None:
    answer = await replica.builds.ListRuntimes(ListRuntimesRequest())
    go = {runtime.name: runtime for runtime in answer.runtimes}["go"]
    if not go.available:
        pytest.skip(go.unavailable_reason)
    build = await replica.create(runtime="go", handler=go.example, uid="a", wait=1)
    stream = replica.builds.WatchBuild(WatchBuildRequest(name=build.name))
    build = [event async for event in stream][-1].ended
    assert build.state == Build.STATE_SUCCEEDED, build
    artefact = build.artefact
    assert (artefact.kind, artefact.entry) == (Artefact.KIND_GO_HANDLER, "function")
    program = Path(artefact.directory, artefact.entry)
    assert program.stat().st_mode & 0o777 == 0o755
    assert program.read_bytes()[:4] == b"\x7fELF"
    # Nothing to listen on: it ends by itself.
    alone = {"PORT": "none"}
    ended = subprocess.run([program], capture_output=True, check=False, env=alone, timeout=20)
    assert ended.returncode not in (0, 127)

    broken = go.example.replace('map[string]string{"hi": e.Query["name"]}', "nope")
    failure = (await replica.create(runtime="go", handler=broken)).failure
    assert (failure.reason, failure.line, failure.column) == ("COMPILE_FAILED", 4, 9), failure
    assert failure.message == "undefined: nope"
    assert failure.source_line == "\treturn nope, nil"

    none = (await replica.create(runtime="go", handler="package function\n")).failure
    assert none.reason == "HANDLER_MISSING", none

    project = {
        "go.mod": "module words\n\ngo 1.24\n",
        "main.go": 'package words\n\nimport "words/list"\n\n'
        "func Handle(e Event, c Context) (any, error) { return list.Words, nil }\n",
        "list/list.go": 'package list\n\nvar Words = []string{"a"}\n',
    }
    built = await replica.create(runtime="go", archive=tar_of(project))
    assert built.state == Build.STATE_SUCCEEDED, built.failure
    assert replica.files("temporary") == []
