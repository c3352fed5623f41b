"""From an order to a context."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from mayfly.v1.build_pb2 import Artefact

import runtimes
from services.builder.backends.base import Kind, Order
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters, own
from services.builder.backends.environment.requirements import Requested
from services.builder.backends.kaniko.explained import explained
from services.builder.backends.kaniko.output import Output
from services.builder.backends.kaniko.recipes import (
    Images,
    Recipe,
    Recipes,
    declared,
    requirement_files,
    why_unavailable,
)
from services.builder.failures import BuildFailed
from tests.builder.kaniko.sources import GO, Quiet, archive

PYTHON = ".".join(map(str, own().release))
IMAGES = Images("python:x", PYTHON, "go:x", "static:x")


def order(tmp_path: Path, source: str | bytes, kind: Kind, runtime: str) -> Order:
    """Return an order whose files go below `tmp_path`."""
    return Order(
        id="b1",
        uid="u1",
        token="t1",
        runtime=runtime,
        kind=kind,
        source=source.encode() if isinstance(source, str) else source,
        directory=tmp_path / "artefact",
        files=tmp_path / "files",
        workspace=tmp_path / "workspace",
    )


async def recipe(
    tmp_path: Path, source: str | bytes, kind: Kind = "handler", runtime: str = "python"
) -> Recipe:
    """Return the recipe of a source."""
    recipes = Recipes(
        IMAGES,
        Path(next(iter(runtimes.__path__))),
        Limits(1 << 20, 100),
        Interpreters(os.environ, tmp_path / "interpreters", None),
    )
    ordered = order(tmp_path, source, kind, runtime)
    return await recipes.of(ordered, await recipes.placed(ordered), ["UV_INDEX"], Quiet())


async def test_a_python_handler(tmp_path: Path) -> None:
    made = await recipe(tmp_path, "def handler(event, ctx): ...\n")
    assert made.kind == Artefact.KIND_PYTHON_HANDLER
    assert made.arguments["PROGRAM"] == "/mayfly/container.py"
    assert made.arguments["BASE_IMAGE"] == "python:x"
    assert made.files["requirements/requirements.txt"] == b""
    assert "runtime/container.py" in made.files
    assert (tmp_path / "files" / "handler.py").is_file()


async def test_a_script_is_run_itself(tmp_path: Path) -> None:
    source = '# /// script\n# dependencies = ["six"]\n# [tool.mayfly]\n# port = 8000\n# ///\n'
    made = await recipe(tmp_path, source, "script")
    assert (made.kind, made.entry) == (Artefact.KIND_SCRIPT, "script.py")
    assert made.arguments["PROGRAM"] == "/mayfly/script.py"
    assert made.arguments["ENTRY"] == "/function/script.py"
    assert made.files["requirements/requirements.txt"] == b"six\n"
    assert made.settings.port == 8000


async def test_a_go_handler_stands_beside_its_template(tmp_path: Path) -> None:
    made = await recipe(tmp_path, GO, runtime="go")
    assert (made.kind, made.own) == (Artefact.KIND_GO_HANDLER, frozenset({"function.go"}))
    assert (tmp_path / "files" / "function.go").read_text().startswith("package main\n")
    assert (tmp_path / "files" / "go.mod").is_file()
    assert made.arguments == {"GO_IMAGE": "go:x", "GO_BASE_IMAGE": "static:x", "MOD": "mod"}


@pytest.mark.parametrize("runtime", ["python", "go"])
async def test_an_archive_with_a_dockerfile_is_taken_as_it_is(tmp_path: Path, runtime: str) -> None:
    made = await recipe(tmp_path, archive(Dockerfile="FROM x\n"), "archive", runtime)
    assert made.kind == Artefact.KIND_IMAGE
    assert (made.entry, made.arguments) == ("", {})
    assert made.files == {"": tmp_path / "files"}


async def test_what_another_backend_has_placed_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "left").write_text("x")
    await recipe(tmp_path, "def handler(event, ctx): ...\n")
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["handler.py"]


@pytest.mark.parametrize(
    ("source", "kind", "runtime", "reason"),
    [
        ("def handler(:\n", "handler", "python", "SOURCE_SYNTAX"),
        ("x = 1\n", "handler", "python", "HANDLER_MISSING"),
        (archive(readme="x"), "archive", "python", "ARCHIVE_INVALID"),
        (archive(readme="x"), "archive", "go", "ARCHIVE_INVALID"),
        (b"no archive", "archive", "python", "ARCHIVE_INVALID"),
        ("print(1)\n", "script", "python", "SCRIPT_BLOCKS"),
    ],
)
async def test_what_is_refused_before_a_pod_is_made(
    tmp_path: Path, source: str | bytes, kind: Kind, runtime: str, reason: str
) -> None:
    with pytest.raises(BuildFailed) as raised:
        await recipe(tmp_path, source, kind, runtime)
    assert raised.value.reason == reason


def test_every_stage_knows_the_variables_of_indexes() -> None:
    given = "ARG A\nFROM ${A} AS one\nRUN x\nfrom two\n"
    expected = "ARG A\nFROM ${A} AS one\nARG P\nARG Q\nRUN x\nfrom two\nARG P\nARG Q\n"
    assert declared(given, ["P", "Q"]) == expected
    assert declared(given, []) == given


def test_what_uv_is_told() -> None:
    files = requirement_files(
        Requested(
            requirements=("six==1.17.0", "attrs"),
            constraints=("attrs<30",),
            overrides=("attrs>1",),
            options=('--exclude-newer=2026-01-01"', "--prerelease=allow"),
            hashes={"six": ("--hash=sha256:ab",)},
        )
    )
    assert files["requirements/requirements.txt"] == b"six==1.17.0 --hash=sha256:ab\nattrs\n"
    assert files["requirements/constraints.txt"] == b"attrs<30\n"
    assert files["requirements/overrides.txt"] == b"attrs>1\n"
    toml = files["requirements/uv.toml"]
    assert isinstance(toml, bytes)
    assert tomllib.loads(toml.decode()) == {
        "exclude-newer": '2026-01-01"',
        "prerelease": "allow",
    }


def test_a_runtime_whose_images_are_not_set_says_what_to_set() -> None:
    assert why_unavailable("go", IMAGES) == ""
    assert "MAYFLY_GO_IMAGE" in why_unavailable("go", Images("x", "3.13", "", ""))
    assert "MAYFLY_BASE_IMAGE" in why_unavailable("python", Images("", "3.13", "x", "y"))


def printed(*lines: str) -> Output:
    """Return the output of a step."""
    output = Output()
    for line in lines:
        output.read(line)
    return output


async def test_the_compiler_and_the_installer_have_their_own_failures(tmp_path: Path) -> None:
    failed = BuildFailed("BUILD_STEP_FAILED", "m", "f", exit_code=1)
    go = await recipe(tmp_path, GO, runtime="go")
    told = explained(
        failed,
        order(tmp_path, GO, "handler", "go"),
        go,
        printed("# function", "./function.go:4:9: undefined: nope"),
    )
    assert (told.reason, told.line, told.message) == ("COMPILE_FAILED", 4, "undefined: nope")
    assert "Query" in told.source_line

    python = await recipe(tmp_path, "def handler(event, ctx): ...\n")
    asked = order(tmp_path, "", "handler", "python")
    unsolvable = printed(
        "  x No solution found when resolving dependencies:",
        "  Because nope was not found in the package registry, it cannot be used.",
    )
    assert explained(failed, asked, python, unsolvable).reason == "PACKAGE_NOT_FOUND"
    other = BuildFailed("PUSH_REFUSED", "m", "f")
    assert explained(other, asked, python, unsolvable) is other
    own_file = await recipe(tmp_path, archive(Dockerfile="FROM x\n"), "archive")
    assert explained(failed, asked, own_file, unsolvable) is failed
