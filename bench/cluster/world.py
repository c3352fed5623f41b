"""How long something of a function is left in the cluster."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

from bench.http import BenchFailed, Client
from libs.kube.cluster import Cluster
from libs.kube.kinds import CONFIG_MAP, DEPLOYMENT, KNATIVE_SERVICE, POD, SECRET, SERVICE

_KINDS = (POD, SERVICE, CONFIG_MAP, SECRET, DEPLOYMENT, KNATIVE_SERVICE)
_SECONDS = 120.0


async def until_nothing_is_left(cluster: Cluster, client: Client, function_id: str) -> float:
    """Wait for a function's deadline and then for its last object; milliseconds in between.

    What belongs to it is found by its label, in all namespaces.
    """
    text = str(client.get(function_id)["expireTime"]).replace("Z", "+00:00")
    deadline = datetime.fromisoformat(text).timestamp()
    await asyncio.sleep(max(0.0, deadline - time.time()))
    selector = f"mayfly.dev/function={function_id}"
    while time.time() < deadline + _SECONDS:
        found = await asyncio.gather(*(cluster.list(kind, "", selector) for kind in _KINDS))
        if not any(found):
            return (time.time() - deadline) * 1000
        await asyncio.sleep(0.02)
    raise BenchFailed(f"{function_id}: something is left {_SECONDS} s after its deadline")
