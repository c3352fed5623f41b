"""Finding interpreters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from services.builder.backends.environment.interpreters import (
    Interpreter,
    Interpreters,
    best,
    candidates,
    own,
    read_probe,
)
from services.builder.failures import BuildFailed


def quiet(_: str) -> None:
    """Take a log line."""


def program(path: Path, text: str) -> Path:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_ones_own_is_real_and_runs() -> None:
    assert os.path.realpath(own().path) == own().path
    assert own().release == sys.version_info[:2]


def test_the_newest_that_satisfies_is_chosen() -> None:
    found = [Interpreter("/a", "3.9.18"), Interpreter("/b", "3.12.1"), Interpreter("/c", "3.13.0")]
    assert best(found, SpecifierSet(">=3.10,<3.13")) == found[1]
    assert best(found, SpecifierSet(">=3.9")) == found[2]
    assert best(found, SpecifierSet("==3.11.*")) is None


def test_candidates_leave_shims_out(tmp_path: Path) -> None:
    for name in ("bin/python3", "bin/python3.12", "bin/python3-config", "bin/python3.12-dbg"):
        program(tmp_path / name, "")
    program(tmp_path / "shims/python3", "exit 1")
    program(tmp_path / "pyenv/versions/3.13.0/bin/python3.13", "")
    environ = {
        "PATH": f"{tmp_path}/shims:{tmp_path}/bin:{tmp_path}/missing:relative",
        "PYENV_ROOT": f"{tmp_path}/pyenv",
        "HOME": str(tmp_path),
    }
    found = [str(path.relative_to(tmp_path)) for path in candidates(environ, tmp_path / "none")]
    assert found == ["bin/python3", "bin/python3.12", "pyenv/versions/3.13.0/bin/python3.13"]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['["pypy", "3.11.0", "final", true, true]'], "pypy"),
        (['["cpython", "3.6.15", "final", true, true]'], "older"),
        (['["cpython", "3.15.0", "beta", true, true]'], "final"),
        (['["cpython", "3.12.0", "final", false, true]'], "virtual"),
        (["pyenv: version `3.9' is not installed"], "pyenv"),
        ([], "exit code 1"),
    ],
)
def test_answers_that_do_not_do(lines: list[str], why: str) -> None:
    answer = read_probe("/x", 1, lines)
    assert answer.interpreter is None
    assert why in answer.why_not


async def test_broken_candidates_are_skipped_and_asked_once(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program(tmp_path / "bin/python3", f"echo x >> {asked}; echo broken; exit 1")
    program(
        tmp_path / "bin/python3.14",
        """echo '["cpython", "3.14.0", "final", true, true]'""",
    )
    found = Interpreters({"PATH": f"{tmp_path}/bin:/bin"}, tmp_path / "none", None)
    versions = [one.version for one in await found.found()]
    assert versions[0] == own().version
    assert "3.14.0" in versions
    await found.found(again=True)
    assert asked.read_text() == "x\n"
    chosen = await found.choose(">=3.14", quiet)
    assert chosen.path == str(tmp_path / "bin/python3.14")


async def test_what_cannot_be_satisfied_lists_what_was_found(tmp_path: Path) -> None:
    program(tmp_path / "bin/python3", "echo broken; exit 1")
    found = Interpreters({"PATH": f"{tmp_path}/bin"}, tmp_path / "none", None)
    with pytest.raises(BuildFailed) as raised:
        await found.choose(">=4", quiet, line=7)
    assert (raised.value.reason, raised.value.line) == ("PYTHON_UNSATISFIABLE", 7)
    assert own().version in raised.value.message
    assert "'>=4'" in raised.value.message
    assert "broken" in raised.value.message


async def test_a_missing_one_is_downloaded_where_that_is_wanted(tmp_path: Path) -> None:
    async def install(wanted: str, say: Callable[[str], None]) -> None:
        say(f"downloading {wanted}")
        answer = """echo '["cpython", "3.99.0", "final", true, true]'"""
        program(tmp_path / "installed/cpython-3.99/bin/python3.99", answer)

    said: list[str] = []
    found = Interpreters({"PATH": ""}, tmp_path / "installed", install)
    chosen = await found.choose(">=3.99", said.append)
    assert chosen.version == "3.99.0"
    assert said[-1] == "downloading >=3.99"


async def test_a_download_that_fails_is_told_of(tmp_path: Path) -> None:
    async def install(wanted: str, say: Callable[[str], None]) -> None:
        raise BuildFailed("INSTALL_FAILED", "no route to the mirror", "")

    found = Interpreters({"PATH": ""}, tmp_path / "installed", install)
    with pytest.raises(BuildFailed) as raised:
        await found.choose(">=3.99", quiet)
    assert "no route to the mirror" in raised.value.message
