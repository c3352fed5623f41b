"""A watch against a real API server, broken in the ways in which watches break."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from libs.kube.kinds import CONFIG_MAP

if TYPE_CHECKING:
    from libs.kube.cluster import Cluster
    from libs.kube.informer import Change

SELECTOR = "test=yes"


def config_map(namespace: str, name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"test": "yes"}},
        "data": data,
    }


async def next_of(changes: AsyncIterator[Change]) -> tuple[str, str]:
    async with asyncio.timeout(10):
        change = await anext(changes)
    return change.type, change.name


async def test_objects_and_changes_follow_the_world(kube: Cluster, namespace: str):
    await kube.apply(config_map(namespace, "a"))
    async with kube.watch(CONFIG_MAP, namespace, SELECTOR) as maps:
        await maps.ready(10)
        assert list(maps.objects) == ["a"]
        assert "managedFields" not in maps.objects["a"]["metadata"]
        async with maps.subscribe() as changes:
            assert await next_of(changes) == ("added", "a")
            await kube.apply(config_map(namespace, "b"))
            assert await next_of(changes) == ("added", "b")
            await kube.apply(config_map(namespace, "b", x="1"))
            assert await next_of(changes) == ("modified", "b")
            await kube.delete(CONFIG_MAP, namespace, "a")
            assert await next_of(changes) == ("deleted", "a")
        assert list(maps.objects) == ["b"]


async def test_until_waits_for_a_state(kube: Cluster, namespace: str):
    async with kube.watch(CONFIG_MAP, namespace, SELECTOR) as maps:
        waiting = asyncio.create_task(
            maps.until("a", lambda each: each and each.get("data", {}).get("x"), 10)
        )
        await kube.apply(config_map(namespace, "a"))
        await kube.apply(config_map(namespace, "a", x="1"))
        assert await waiting == "1"
        waiting = asyncio.create_task(maps.until("a", lambda each: each is None or None, 10))
        await kube.delete(CONFIG_MAP, namespace, "a")
        assert await waiting


async def test_too_old_a_version_lists_anew_and_tells_of_what_went(kube: Cluster, namespace: str):
    await kube.apply(config_map(namespace, "gone"))
    await kube.apply(config_map(namespace, "stays"))
    async with kube.watch(CONFIG_MAP, namespace, SELECTOR) as maps, maps.subscribe() as changes:
        await maps.ready(10)
        assert {await next_of(changes), await next_of(changes)} == {
            ("added", "gone"),
            ("added", "stays"),
        }
        before = maps.objects["stays"]
    # Entered again as if it had slept since the beginning of time.
    await kube.delete(CONFIG_MAP, namespace, "gone")
    await kube.apply(config_map(namespace, "new"))
    maps._version = "1"
    async with maps, maps.subscribe() as changes:
        assert {await next_of(changes), await next_of(changes)} == {
            ("added", "gone"),
            ("added", "stays"),
        }
        told: list[tuple[str, str]] = []
        while not {("deleted", "gone"), ("added", "new")} <= set(told):
            told.append(await next_of(changes))
        assert set(maps.objects) == {"stays", "new"}
        # A server that began minutes ago still knows version 1, and replays.
        if ("modified", "gone") not in told:
            assert told == [("deleted", "gone"), ("added", "new")]
            assert maps.objects["stays"] is before


async def test_a_killed_connection_loses_nothing(
    cluster: Any, kube: Cluster, namespace: str, tmp_path: Path
):
    from libs.kube.cluster import Cluster

    async with _relay(cluster, tmp_path) as (kubeconfig, cut):
        connected = await Cluster.connect(str(kubeconfig))
        try:
            async with connected.watch(CONFIG_MAP, namespace, SELECTOR) as maps:
                await maps.ready(10)
                async with maps.subscribe() as changes:
                    for number in range(3):
                        cut()
                        await kube.apply(config_map(namespace, f"m{number}"))
                        assert await next_of(changes) == ("added", f"m{number}")
        finally:
            await connected.close()


@asynccontextmanager
async def _relay(cluster: Any, folder: Path) -> AsyncIterator[tuple[Path, Any]]:
    """A way to the API server that can be cut."""
    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    entry = config["clusters"][0]["cluster"]
    there = urlsplit(entry["server"])
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, to = await asyncio.open_connection(there.hostname, there.port)
        writers.update((writer, to))
        await asyncio.gather(_pump(reader, to), _pump(up, writer))

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    entry["server"] = f"https://127.0.0.1:{port}"
    entry["tls-server-name"] = there.hostname
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    try:
        yield path, cut
    finally:
        cut()
        server.close()
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
