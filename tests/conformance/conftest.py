"""Runs against `--url`, or against a Mayfly of this checkout that is started for the session."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.conformance.door import Door
from tests.conformance.standalone import Standalone

HEALTHY_SECONDS = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--url", help="a running Mayfly; without it one is started")
    parser.addoption(
        "--driver",
        choices=["process", "knative", "deployment"],
        default="process",
        help="the driver of the Mayfly at --url: some promises hold on one machine alone",
    )


@pytest.fixture(scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    """How functions run there. A test asks only where a promise cannot hold everywhere."""
    return str(request.config.getoption("--driver"))


@pytest.fixture(scope="session")
def on_cluster(driver: str) -> bool:
    """Functions are containers of a Kubernetes, not processes of the platform's own machine."""
    return driver != "process"


def _until_healthy(url: str) -> None:
    """Wait: a gateway finds parts that have just been replaced within seconds."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while (answer := httpx.get(f"{url}/healthz", timeout=10)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest) -> Iterator[str]:
    """The public URL of the Mayfly under test."""
    if url := request.config.getoption("--url", default=None):
        _until_healthy(url)
        yield url
        return
    # Short, because paths of unix sockets end at 107 bytes; traversable, because functions run
    # as other users than this one.
    parent = Path(tempfile.mkdtemp(prefix="mayfly-"))
    parent.chmod(0o755)
    # Instances that are not used end soon, so that tests of it need not wait long.
    mayfly = Standalone(parent / "d", env={"MAYFLY_IDLE_STOP": "5s"})
    try:
        mayfly.start()
        yield mayfly.url
        code = mayfly.stop()
        assert code == 0, f"it ended with {code}:\n{mayfly.log_tail()}"
    finally:
        if mayfly.running:
            mayfly.stop()
        shutil.rmtree(parent, ignore_errors=True)


@pytest_asyncio.fixture
async def mayfly(platform: str, driver: str) -> AsyncIterator[Door]:
    """The door of the Mayfly under test; functions made through it are deleted afterwards."""
    door = Door(platform, driver)
    try:
        yield door
    finally:
        await door.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing(platform: str, driver: str) -> AsyncIterator[Door]:
    """A door whose functions stay until its module's tests are done, for tests that only call
    one; each calls it through a door of its own."""
    door = Door(platform, driver)
    try:
        yield door
    finally:
        await door.close()
