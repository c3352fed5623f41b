"""Takes the figures of running releases beside what a person would do by hand.

The rows of one group are taken in turn, one sample each. Releases are named by their URLs, since
they are installed by whoever wants figures of them: `helm install`, docs/kubernetes.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from bench import machine
from bench.cluster.peers import ByHand
from bench.cluster.world import until_nothing_is_left
from bench.figures import Figure, text_table
from bench.http import BenchFailed, Client
from bench.results import keep
from bench.submit import HANDLER, Submission
from libs.kube.cluster import Cluster
from libs.kube.kinds import NAMESPACE

_LIVE = {"STATE_READY", "STATE_IDLE"}
_AT_ONCE = 16
_UNDER_WAY = 32
_BURST = 64
_LOOK_SECONDS = 1.0
_LIVE_LOOK_SECONDS = 0.5
_CROWD_SECONDS = 900.0


async def submissions(url: str, driver: str, by_hand: ByHand, rounds: int) -> list[Figure]:
    """Submit → first 200 of a handler that was never built, beside its peer."""
    client = Client(url)
    handler = Submission("handler", f"{driver}: handler, build included", HANDLER)
    domain = os.environ["MAYFLY_TEST_KNATIVE_DOMAIN"]
    if driver == "deployment":
        peer, bound = Figure("bare pod: create → Ready"), 2.0
    else:
        peer, bound = Figure("Knative Service by hand, image pushed: create → first 200"), 1.25
    handler.total.peer, handler.total.bound = peer, bound
    tag = secrets.token_hex(3)
    # The first of each pulls images and is not counted.
    for number in range(rounds + 1):
        # A kubelet looks at its containers once a second, and what waited for the end of a pod goes
        # on right after such a look: without chance every sample would begin at the same point.
        await asyncio.sleep(random.uniform(0, _LOOK_SECONDS))
        function_id = f"bench-{tag}-{number}"
        handler.run(client, function_id, f"{driver} {tag} {number}")
        # What ends costs the node as much as what starts: each begins when the other is gone.
        client.wait_receipt(function_id)
        await asyncio.sleep(random.uniform(0, _LOOK_SECONDS))
        name = f"peer-{tag}-{number}"
        if driver == "deployment":
            peer.add(await by_hand.pod_ready(name))
        else:
            peer.add(await by_hand.knative_answers(name, domain))
        if number == 0:
            for figure in (*handler.figures(), peer):
                figure.samples.clear()
    client.close()
    return [*handler.figures(), peer]


async def endings(url: str, driver: str, cluster: Cluster, rounds: int) -> Figure:
    """From a deadline until nothing of the function is left in the cluster."""
    client = Client(url)
    figure = Figure(f"{driver}: deadline → nothing left")
    tag = secrets.token_hex(3)
    for number in range(rounds):
        function_id = f"end-{tag}-{number}"
        client.create(function_id, handler=f"{HANDLER}\n# {tag} {number}\n", ttl="15s")
        client.expect("GET", f"/f/{function_id}/")
        figure.add(await until_nothing_is_left(cluster, client, function_id))
    client.close()
    return figure


def crowd(url: str, driver: str, count: int) -> list[Figure]:
    """Have many, made a few at a time; then create more, and see how many a second are taken."""
    live = Figure(f"{driver}: to {count} functions, {_UNDER_WAY} under way at a time", unit="/s")
    taken = Figure(f"{driver}: creations taken beside these, {_AT_ONCE} at a time", unit="/s")
    tag = secrets.token_hex(3)
    ids = [f"many-{tag}-{number}" for number in range(count)]
    more = [f"more-{tag}-{number}" for number in range(_BURST)]
    try:
        live.missing = _each_until_live(url, ids, live)
        if live.missing:
            taken.missing = live.missing
        else:
            began = time.perf_counter()
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda function_id: _create(url, function_id), more))
            taken.add(_BURST / (time.perf_counter() - began))
    finally:
        _delete_all(url, [*ids, *more])
    return [live, taken]


def _create(url: str, function_id: str) -> None:
    client = Client(url)
    try:
        client.create(
            function_id, handler=HANDLER, ttl="3600s", resources={"memoryBytes": str(64 << 20)}
        )
    finally:
        client.close()


def _each_until_live(url: str, ids: list[str], live: Figure) -> str:
    """Create them, so many under way at a time; say why not all are live, "" when they are."""
    began = time.perf_counter()

    def one(function_id: str) -> str:
        _create(url, function_id)
        client = Client(url)
        try:
            while (function := client.get(function_id))["state"] not in _LIVE:
                if function["state"] == "STATE_FAILED":
                    return f"{function_id}: {function['failure']['message']}"
                if time.perf_counter() - began > _CROWD_SECONDS:
                    return f"{function_id} is not live after {_CROWD_SECONDS:.0f} s"
                time.sleep(_LIVE_LOOK_SECONDS)
        finally:
            client.close()
        return ""

    with ThreadPoolExecutor(_UNDER_WAY) as pool:
        outcomes = list(pool.map(one, ids))
    seconds = time.perf_counter() - began
    if not (reasons := [each for each in outcomes if each]):
        live.add(len(ids) / seconds)
    return reasons[0] if reasons else ""


def _delete_all(url: str, ids: list[str]) -> None:
    client = Client(url)
    for function_id in ids:
        status, content = client.request("DELETE", f"/v1/functions/{function_id}")
        if status not in (200, 404):
            raise BenchFailed(f"DELETE {function_id}: {status} {content[:300]!r}")
    client.close()


async def take(releases: dict[str, str], rounds: int, functions: int) -> list[Figure]:
    """Take all figures of the releases, by driver and URL."""
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        cluster = await Cluster.connect(os.environ.get("KUBECONFIG", ""))
        stack.push_async_callback(cluster.close)
        namespace = f"mayfly-bench-{secrets.token_hex(3)}"
        await cluster.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        )
        stack.push_async_callback(cluster.delete, NAMESPACE, "", namespace)
        by_hand = ByHand(
            cluster,
            namespace,
            os.environ["MAYFLY_TEST_PYTHON_IMAGE"],
            os.environ["MAYFLY_TEST_KNATIVE_INGRESS"],
        )
        for driver, url in releases.items():
            figures += await submissions(url, driver, by_hand, rounds)
            figures.append(await endings(url, driver, cluster, max(3, rounds // 3)))
            if functions:
                figures += await asyncio.to_thread(crowd, url, driver, functions)
    return figures


def main() -> int:
    """Take the figures, print them, and write them where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--deployment", help="URL of a release with driver=deployment")
    parser.add_argument("--knative", help="URL of a release with driver=knative")
    parser.add_argument("--rounds", type=int, default=10, help="samples of each row (10)")
    parser.add_argument("--functions", type=int, default=200, help="how many are many (200)")
    parser.add_argument("--results", type=Path, help="also keep the table in this file")
    options = parser.parse_args()
    given = {"deployment": options.deployment, "knative": options.knative}
    releases = {driver: url for driver, url in given.items() if url}
    if not releases:
        parser.error("name a release by --deployment URL, --knative URL, or both")
    where = machine.describe()
    figures = asyncio.run(take(releases, options.rounds, options.functions))
    print(f"{where}\n\n{text_table(figures)}")
    if options.results:
        keep(options.results, f"Kubernetes: {', '.join(releases)}", where, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
