"""Sources that cannot be built or started: FAILED with stage, reason, place and fix."""

from __future__ import annotations

import base64
import io
import tarfile
import zipfile
from typing import Any

import pytest

from tests.conformance.door import Door, Json, example, id_of, problem_of, state_of

BLOCK = "# /// script\n{}# ///\n"
SERVE = (
    "import http.server\n"
    "http.server.HTTPServer(('0.0.0.0', {port}), http.server.BaseHTTPRequestHandler)"
    ".serve_forever()\n"
)


def script(metadata: str, code: str = "print('x')\n") -> str:
    """Return a script with one block of the given TOML lines."""
    lines = "".join(f"# {line}\n" for line in metadata.splitlines())
    return BLOCK.format(lines) + code


HANDLER = "def handler(event, ctx):\n    return 1\n"
BUILD_FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "syntax error": ({"handler": example("broken.py")}, "SOURCE_SYNTAX", "never closed"),
    "syntax error in a script": (
        {"script": script("dependencies = []", "def f(:\n    pass\n")},
        "SOURCE_SYNTAX",
        "",
    ),
    "handler missing": ({"handler": "def other():\n    pass\n"}, "HANDLER_MISSING", "handler"),
    "handler that is no function": ({"handler": "handler = 5\n"}, "HANDLER_MISSING", ""),
    "two script blocks": (
        {"script": (BLOCK.format("# dependencies = []\n") + "\n") * 2 + "print(1)\n"},
        "SCRIPT_BLOCKS",
        "",
    ),
    "no script block": ({"script": "print(1)\n"}, "SCRIPT_BLOCKS", ""),
    "bad TOML": ({"script": script("dependencies = [")}, "SCRIPT_METADATA", ""),
    "dependencies of the wrong type": (
        {"script": script('dependencies = "httpx"')},
        "SCRIPT_METADATA",
        "dependencies",
    ),
    "requires-python of the wrong type": (
        {"script": script("requires-python = 3.11")},
        "SCRIPT_METADATA",
        "requires-python",
    ),
    "malformed requirement": (
        {"script": script('dependencies = ["not a requirement!!"]')},
        "REQUIREMENT_REFUSED",
        "not a requirement!!",
    ),
    "URL requirement": (
        {"script": script('dependencies = ["x @ https://localhost/x-1-py3-none-any.whl"]')},
        "REQUIREMENT_REFUSED",
        "localhost",
    ),
    "URL requirement of a handler": (
        {"handler": script('dependencies = ["x @ file:///etc/passwd"]', HANDLER)},
        "REQUIREMENT_REFUSED",
        "",
    ),
    "own index": (
        {
            "script": script(
                'dependencies = ["six"]\n[[tool.uv.index]]\nurl = "http://localhost:9/simple"'
            )
        },
        "INDEX_REFUSED",
        "",
    ),
    "own index-url": (
        {"script": script('dependencies = []\n[tool.uv]\nindex-url = "http://localhost:9/simple"')},
        "INDEX_REFUSED",
        "",
    ),
    "own sources": (
        {"script": script('dependencies = ["six"]\n[tool.uv.sources]\nsix = { path = "/etc" }')},
        "REFUSED",
        "",
    ),
    "unsatisfiable requires-python": (
        {"script": script('requires-python = ">=4"')},
        "PYTHON_UNSATISFIABLE",
        "4",
    ),
}


def assert_complete(failure: Json, stage: str, reason: str) -> None:
    """A failure says where, why and what to change."""
    assert failure["stage"].removeprefix("STAGE_") in stage.split("|"), failure
    assert failure["reason"].endswith(reason), failure
    assert failure["message"], failure
    assert failure["fix"], failure


@pytest.mark.parametrize("case", BUILD_FAILURES)
async def test_a_bad_source_fails_in_the_build(mayfly: Door, case: str) -> None:
    source, reason, said = BUILD_FAILURES[case]
    function = await mayfly.settled(await mayfly.create(**source), "FAILED")
    failure = function["failure"]
    assert_complete(failure, "CHECK|BUILD", reason)
    assert said in failure["message"], failure
    answer = await mayfly.call(function)
    problem = problem_of(answer)
    assert (problem.http, problem.reason) == (503, failure["reason"]), answer.text
    assert problem.stage.lower() in {"build", "check"}, answer.text
    assert problem.fix, answer.text


async def test_a_syntax_error_names_line_and_column(mayfly: Door) -> None:
    failure = await mayfly.failed(handler="import os\n\ndef handler(e, c):\n    return (1 + 2\n")
    assert (failure["line"], failure["column"]) == (4, 12), failure
    assert failure["sourceLine"].strip() == "return (1 + 2"


async def test_bad_toml_names_the_line_of_the_file(mayfly: Door) -> None:
    source = "#!/usr/bin/env python\n" + script("dependencies = [\n  'six'")
    failure = await mayfly.failed(script=source + "\n")
    assert failure["reason"] == "SCRIPT_METADATA"
    assert 2 <= failure["line"] <= 5, failure


@pytest.mark.needs_index
async def test_a_package_that_does_not_exist(mayfly: Door) -> None:
    name = "mayfly-conformance-no-such-package"
    failure = await mayfly.failed(script=script(f'dependencies = ["{name}"]'))
    assert_complete(failure, "BUILD", "PACKAGE_NOT_FOUND")
    assert name in failure["message"] + "\n".join(failure.get("logTail", [])), failure


@pytest.mark.needs_index
async def test_a_version_that_does_not_exist(mayfly: Door) -> None:
    failure = await mayfly.failed(script=script('dependencies = ["six==0.0.0.1"]'))
    assert failure["reason"] in {"PACKAGE_NOT_FOUND", "REQUIREMENTS_CONFLICT"}, failure
    assert_complete(failure, "BUILD", failure["reason"])
    assert "six" in failure["message"], failure


@pytest.mark.needs_index
async def test_requirements_that_contradict_each_other(mayfly: Door) -> None:
    failure = await mayfly.failed(script=script('dependencies = ["six==1.16.0", "six==1.15.0"]'))
    assert_complete(failure, "BUILD", "REQUIREMENTS_CONFLICT")
    assert "six" in failure["message"], failure


async def test_a_script_that_exits(mayfly: Door) -> None:
    code = "import sys\nprint('reading the settings')\nsys.exit('no settings found')\n"
    failure = await mayfly.failed(script=script("dependencies = []", code))
    assert_complete(failure, "DEPLOY", "SCRIPT_EXITED")
    assert failure["exitCode"] == 1, failure
    tail = "\n".join(failure["logTail"])
    assert "reading the settings" in tail, failure
    assert "no settings found" in tail, failure


async def test_a_script_that_ends_well_has_ended_all_the_same(mayfly: Door) -> None:
    failure = await mayfly.failed(script=script("dependencies = []", "print('bye')\n"))
    assert_complete(failure, "DEPLOY", "SCRIPT_EXITED")
    assert failure["exitCode"] == 0, failure


async def test_a_script_that_dies_of_a_signal(mayfly: Door) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nimport time; time.sleep(60)\n"
    failure = await mayfly.failed(script=script("dependencies = []", code))
    assert_complete(failure, "DEPLOY", "SCRIPT_EXITED")
    assert failure["exitCode"] == -9, failure


@pytest.mark.timeout(240)
async def test_a_script_that_never_listens(mayfly: Door) -> None:
    code = "import time\nprint('thinking')\ntime.sleep(600)\n"
    failure = await mayfly.failed(script=script("dependencies = []", code), ttl="600s")
    assert_complete(failure, "DEPLOY", "SCRIPT_NEVER_LISTENED")
    assert "8000" in failure["message"] + failure["fix"], failure


async def test_a_script_that_listens_elsewhere(mayfly: Door) -> None:
    source = script("dependencies = []", SERVE.format(port=9000))
    failure = await mayfly.failed(script=source)
    assert_complete(failure, "DEPLOY", "SCRIPT_LISTENS_ELSEWHERE")
    assert "9000" in failure["message"], failure
    assert "8000" in failure["message"] + failure["fix"], failure


async def test_the_port_of_the_request_is_the_expected_one(mayfly: Door) -> None:
    source = script("dependencies = []", SERVE.format(port=9000))
    await mayfly.ready(script=source, port=9000)


async def test_the_port_of_the_script_block_is_the_expected_one(mayfly: Door) -> None:
    metadata = "dependencies = []\n[tool.mayfly]\nport = 9000"
    await mayfly.ready(script=script(metadata, SERVE.format(port=9000)))


@pytest.mark.timeout(240)
async def test_a_health_path_that_never_answers_2xx(mayfly: Door) -> None:
    source = script("dependencies = []", SERVE.format(port=8000))
    failure = await mayfly.failed(script=source, health="/up", ttl="600s")
    assert_complete(failure, "DEPLOY", "HEALTH_CHECK_FAILED")
    assert "/up" in failure["message"], failure


async def test_a_handler_that_raises_when_it_is_imported(mayfly: Door) -> None:
    code = "SETTINGS = {}\nSETTINGS['missing']\ndef handler(e, c):\n    return 1\n"
    failure = await mayfly.failed(handler=code)
    assert_complete(failure, "DEPLOY", "HANDLER_IMPORT_FAILED")
    assert "KeyError" in failure["message"] + "\n".join(failure.get("logTail", [])), failure


async def test_a_failed_function_keeps_its_lease_and_can_be_repaired(mayfly: Door) -> None:
    function = await mayfly.settled(await mayfly.create(handler=example("broken.py")), "FAILED")
    assert function["expireTime"]
    response = await mayfly.update(function, handler="def handler(e, c):\n    return 'well'\n")
    assert response.status_code == 200, response.text
    repaired = await mayfly.settled(function, "READY")
    assert "failure" not in repaired or repaired["failure"] is None, repaired
    assert repaired["url"] == function["url"]
    assert (await mayfly.call(function)).text.strip('"') == "well"


async def test_a_failed_function_is_reclaimed_like_any_other(mayfly: Door) -> None:
    function = await mayfly.settled(await mayfly.create(handler=example("broken.py")), "FAILED")
    await mayfly.delete(function)
    assert problem_of(await mayfly.call(function)).http == 404
    assert await mayfly.verified_receipt(function)
    assert state_of(await mayfly.get(function)) == "RECLAIMED"


async def test_who_waits_for_a_function_that_fails_is_told(mayfly: Door) -> None:
    function = await mayfly.create(handler="raise SystemError('not today')\n" + HANDLER)
    problem = problem_of(await mayfly.call(function))
    assert (problem.http, problem.reason) == (503, "HANDLER_IMPORT_FAILED"), problem
    assert problem.stage.lower() == "deploy", problem


def tar_of(files: dict[str, str]) -> str:
    """Return a tar.gz of the files, in base64."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return base64.b64encode(whole.getvalue()).decode()


def link_tar() -> str:
    """Return a tar.gz with a symbolic link that leads out of it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        info = tarfile.TarInfo("handler.py")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return base64.b64encode(whole.getvalue()).decode()


BAD_ARCHIVES = {
    "no archive": base64.b64encode(b"not an archive").decode(),
    "a path that leads out": tar_of({"../handler.py": HANDLER}),
    "an absolute path": tar_of({"/tmp/handler.py": HANDLER, "handler.py": HANDLER}),
    "a link that leads out": link_tar(),
    "no entry point": tar_of({"notes.txt": "nothing to run"}),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
async def test_a_bad_archive_fails_in_the_build(mayfly: Door, case: str) -> None:
    failure = await mayfly.failed(archive=BAD_ARCHIVES[case])
    assert_complete(failure, "CHECK|BUILD", "ARCHIVE_INVALID")


PROJECT = {name: example(f"project/{name}") for name in ("handler.py", "rhymes.py", "words.txt")}


def zip_of(files: dict[str, str]) -> str:
    """Return a zip of the files, in base64."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return base64.b64encode(whole.getvalue()).decode()


@pytest.mark.parametrize("pack", [tar_of, zip_of])
async def test_the_project_of_the_examples(mayfly: Door, pack: Any) -> None:
    function = await mayfly.create(archive=pack(PROJECT))
    answer = await mayfly.call(function, "?word=ring")
    assert answer.json() == {"word": "ring", "rhymes": ["wing", "spring", "thing"]}


@pytest.mark.timeout(360)
async def test_go_that_does_not_compile_or_cannot(mayfly: Door) -> None:
    runtimes = {r["name"]: r for r in (await mayfly.http.get("/v1/runtimes")).json()["runtimes"]}
    function_id = mayfly.new_id("go")
    response = await mayfly.post(
        {
            "runtime": "go",
            "handler": "package function\n\nfunc Handle(e Event, c Context) (any, error) {\n"
            "\treturn undefinedName, nil\n}\n",
            "ttl": "400s",
        },
        function_id=function_id,
    )
    if not runtimes["go"].get("available"):
        assert problem_of(response).reason == "UNKNOWN_RUNTIME"
        return
    failure = (await mayfly.settled(response.json(), "FAILED"))["failure"]
    assert_complete(failure, "BUILD", "COMPILE_FAILED")
    assert "undefinedName" in failure["message"], failure
    assert failure["line"] == 4, failure
    assert id_of(response.json()) == function_id
