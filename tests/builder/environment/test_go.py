"""What the Go compiler says."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.builder.backends.environment.go import Go, as_main, explain, prepare
from services.builder.backends.environment.programs import Finished


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("package function\n", "package main\n"),
        ("package main\nvar x = `package y`\n", "package main\nvar x = `package y`\n"),
        ("// package comment\n\npackage a // b\n", "// package comment\n\npackage main // b\n"),
        ("/* package x\npackage y */ package z\n", "/* package x\npackage y */ package main\n"),
        ("\ufeffpackage a\n", "\ufeffpackage main\n"),
        ("//go:build linux\n\npackage a\n", "//go:build linux\n\npackage main\n"),
    ],
)
def test_the_package_becomes_main_and_lines_stay(source: str, expected: str) -> None:
    assert as_main(source) == expected


def failure(tmp_path: Path, *lines: str, own: tuple[str, ...] = ("function.go",)) -> object:
    """Return why a compilation with this output failed."""
    (tmp_path / "function.go").write_text("package function\n\n\treturn nope, nil\n")
    return explain(Finished(1, ("# function", *lines)), tmp_path, frozenset(own))


def test_an_error_has_its_place_and_line(tmp_path: Path) -> None:
    error = failure(tmp_path, "./function.go:3:9: undefined: nope", "./function.go:4:1: other")
    assert (error.reason, error.line, error.column) == ("COMPILE_FAILED", 3, 9)  # pyright: ignore
    assert error.message == "undefined: nope (and 1 more)"  # pyright: ignore
    assert error.source_line == "\treturn nope, nil"  # pyright: ignore


def test_a_missing_handle(tmp_path: Path) -> None:
    error = failure(tmp_path, "./mayfly_main.go:65:22: undefined: Handle")
    assert error.reason == "HANDLER_MISSING"  # pyright: ignore


def test_a_handle_of_another_shape(tmp_path: Path) -> None:
    error = failure(tmp_path, "./mayfly_main.go:65:22: cannot use Handle (value of type func())")
    assert error.reason == "COMPILE_FAILED"  # pyright: ignore
    assert "cannot use Handle" in error.message  # pyright: ignore


def test_modules_from_elsewhere(tmp_path: Path) -> None:
    line = "function.go:3:8: cannot find module providing package x.org/y: module lookup disabled"
    assert "standard library" in failure(tmp_path, line).fix  # pyright: ignore


def test_the_template_is_put_beside_the_users_files(tmp_path: Path) -> None:
    template, project = tmp_path / "template", tmp_path / "project"
    for directory in (template, project):
        directory.mkdir()
        (directory / "main.go").write_text(f"package {directory.name}\n")
        (directory / "go.mod").write_text(f"module {directory.name}\n")
    assert prepare(project, template) == frozenset({"main.go"})
    assert (project / "main.go").read_text() == "package main\n"
    assert (project / "mayfly_main.go").read_text() == "package template\n"
    assert (project / "go.mod").read_text() == "module project\n"


async def test_no_toolchain_is_said_with_what_to_do(tmp_path: Path) -> None:
    version, why = await Go("", {"PATH": str(tmp_path)}, tmp_path, tmp_path, 1).version()
    assert version == ""
    assert "no `go` is on PATH" in why
    assert "MAYFLY_GO" in why


@pytest.mark.parametrize(
    ("answer", "said"), [("go version go1.18 linux/amd64", "1.24"), ("what?", "does not run")]
)
async def test_a_toolchain_that_does_not_do(tmp_path: Path, answer: str, said: str) -> None:
    program = tmp_path / "go"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    version, why = await Go(str(program), {"PATH": "/bin"}, tmp_path, tmp_path, 1).version()
    assert version == ""
    assert said in why
