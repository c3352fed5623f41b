"""The files that containers are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtimes import container_files

OWN = container_files.OWN_VERSION


def placed(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_bytecode_is_there_for_its_own_version_only() -> None:
    assert any(path.endswith(".pyc") for path in container_files.of_handlers(f"{OWN}.7"))
    for other in ("", "2.7", f"{OWN}9"):
        files = container_files.of_handlers(other)
        assert all(path.endswith(".py") for path in files), other


@pytest.mark.parametrize("program", ["container", "script"])
def test_nothing_that_is_imported_is_missing_or_compiled_anew(tmp_path: Path, program: str) -> None:
    files = (
        container_files.of_handlers() if program == "container" else container_files.of_scripts()
    )
    placed(tmp_path / "runtime", files)
    done = subprocess.run(
        [sys.executable, "-v", "-c", f"import runtime.{program}, runtime.open_files"],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    own = str(tmp_path / "runtime")
    loaded = [line for line in done.stderr.splitlines() if "code object from" in line]
    files_used = [line for line in loaded if own in line]
    assert files_used
    assert all(".pyc" in line for line in files_used)
    assert "import 'asyncio'" not in done.stderr
