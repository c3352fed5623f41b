"""Releases of this checkout, one for each driver and session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.release.installed import Release, installed
from tests.cluster.release.site import Site
from tests.conformance.door import Door

DRIVERS = ("deployment", "knative")


@pytest.fixture(scope="session", params=DRIVERS)
def release(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release with each driver in turn, removed with everything that it made."""
    with installed(request.param, replicas=2) as running:
        yield running


@pytest.fixture(scope="session")
def site(cluster: Cluster, release: Release) -> Site:
    """The release, and ways to look at what it has in the cluster."""
    return Site(cluster, release)


@pytest.fixture
async def door(release: Release) -> AsyncIterator[Door]:
    """The release's public port; functions made through it are deleted afterwards."""
    door = Door(release.url, release.driver)
    yield door
    await door.close()


@pytest.fixture(scope="session")
def demo(cluster: Cluster) -> Iterator[Release]:
    """A release that brings its own database and bucket."""
    with installed("deployment", demo=True) as running:
        yield running
