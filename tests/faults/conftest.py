"""Real processes, killed for real."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-rounds", type=int, help="rounds of each loop of kills (8)")
    parser.addoption("--kill-seed", type=int, help="seed of the loops of kills (1)")


@pytest.fixture
def kill_rounds(request: pytest.FixtureRequest) -> int:
    """How often each loop kills."""
    return int(request.config.getoption("--kill-rounds", default=None) or 8)


@pytest.fixture
def kill_seed(request: pytest.FixtureRequest) -> int:
    """The seed of the loops; the same seed kills at the same points."""
    return int(request.config.getoption("--kill-seed", default=None) or 1)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that does not exist yet, on a short path that others may traverse."""
    parent = Path(tempfile.mkdtemp(prefix="mayfly-"))
    parent.chmod(0o755)
    yield parent / "d"
    shutil.rmtree(parent)
