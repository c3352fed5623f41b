from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from libs.kube.cluster import Cluster


@pytest.fixture
async def kube(cluster: Any) -> AsyncIterator[Cluster]:
    from libs.kube.cluster import Cluster

    connected = await Cluster.connect(cluster.kubeconfig)
    try:
        yield connected
    finally:
        await connected.close()
