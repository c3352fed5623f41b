"""Releases of this checkout, one for each driver and session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.release.installed import Release, installed

DRIVERS = ("deployment", "knative")


@pytest.fixture(scope="session", params=DRIVERS)
def release(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release with each driver in turn, removed with everything that it made."""
    with installed(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def demo(cluster: Cluster) -> Iterator[Release]:
    """A release that brings its own database and bucket."""
    with installed("deployment", demo=True) as running:
        yield running
