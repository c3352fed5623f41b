"""Each call against a real API server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from libs.kube import errors
from libs.kube.kinds import CONFIG_MAP, DEPLOYMENT, POD

if TYPE_CHECKING:
    from libs.kube.cluster import Cluster

LABELS = {"app.kubernetes.io/managed-by": "mayfly"}


def config_map(namespace: str, name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "data": data,
    }


def pod(namespace: str, name: str, image: str, *command: str) -> dict[str, Any]:
    container = {"name": "main", "image": image, "command": list(command)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "spec": {"containers": [container], "restartPolicy": "Never"},
    }


async def test_apply_takes_over_and_removes_what_it_had(
    cluster: Any, kube: Cluster, namespace: str
):
    await kube.apply(config_map(namespace, "a", one="1", two="2"))
    cluster.kubectl(
        "-n", namespace, "patch", "configmap", "a", "-p", '{"data":{"one":"x","other":"y"}}'
    )
    now = await kube.apply(config_map(namespace, "a", one="1"))
    assert now["data"] == {"one": "1", "other": "y"}
    managers = {each["manager"] for each in now["metadata"]["managedFields"]}
    assert "mayfly" in managers


async def test_get_list_delete(kube: Cluster, namespace: str):
    for name in ("a", "b"):
        await kube.create(config_map(namespace, name))
    with pytest.raises(errors.AlreadyExists):
        await kube.create(config_map(namespace, "a"))
    found = await kube.get(CONFIG_MAP, namespace, "a")
    assert found is not None
    assert await kube.get(CONFIG_MAP, namespace, "none") is None
    listed = await kube.list(CONFIG_MAP, namespace, "app.kubernetes.io/managed-by=mayfly")
    assert {(each["kind"], each["metadata"]["name"]) for each in listed} == {
        ("ConfigMap", "a"),
        ("ConfigMap", "b"),
    }
    everywhere = await kube.list(CONFIG_MAP, "", "app.kubernetes.io/managed-by=mayfly")
    assert len(everywhere) >= 2
    assert not await kube.delete(CONFIG_MAP, namespace, "a", uid="another")
    assert await kube.delete(CONFIG_MAP, namespace, "a", uid=found["metadata"]["uid"])
    assert not await kube.delete(CONFIG_MAP, namespace, "a")


async def test_what_a_quota_refuses_for_the_moment_is_made(
    kube: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
):
    """Whoever is counted with an older quota gets 409, and nothing is made."""
    said = {"reason": "Conflict", "message": 'cannot be fulfilled on resourcequotas "q"'}
    refusals = [errors.error_of(409, json.dumps(said).encode())]
    transport = kube._transport  # pyright: ignore[reportPrivateUsage]
    send = transport.json

    async def refusing(*request: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await send(*request)

    monkeypatch.setattr(transport, "json", refusing)
    await kube.create(config_map(namespace, "m"))
    assert await kube.get(CONFIG_MAP, namespace, "m") is not None
    assert refusals == []


async def test_scale(cluster: Any, kube: Cluster, namespace: str):
    template = pod(namespace, "x", cluster.static_image, "sleep", "60")
    del template["spec"]["restartPolicy"]
    await kube.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "d", "namespace": namespace},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": LABELS},
                "template": {"metadata": {"labels": LABELS}, "spec": template["spec"]},
            },
        }
    )
    await kube.scale(DEPLOYMENT, namespace, "d", 1)
    found = await kube.get(DEPLOYMENT, namespace, "d")
    assert found is not None
    assert found["spec"]["replicas"] == 1
    with pytest.raises(errors.NotFound):
        await kube.scale(DEPLOYMENT, namespace, "none", 1)


async def test_logs(cluster: Any, kube: Cluster, namespace: str):
    script = "echo one; printf 'two\\nthree'; sleep 1; echo; echo four"
    await kube.create(pod(namespace, "p", cluster.static_image, "sh", "-c", script))
    async with kube.watch(POD, namespace) as pods:
        await pods.until("p", lambda each: _phase(each) in ("Running", "Succeeded") or None, 30)
        lines = [line async for line in kube.logs(namespace, "p", follow=True)]
        assert lines == ["one", "two", "three", "four"]
    timed = [line async for line in kube.logs(namespace, "p", timestamps=True, tail=1)]
    assert timed[0].endswith("Z four")
    with pytest.raises(errors.NotFound):
        [line async for line in kube.logs(namespace, "none")]


async def test_what_is_refused_says_why(cluster: Any, kube: Cluster, namespace: str):
    with pytest.raises(errors.Invalid, match=r"metadata\.name"):
        await kube.create(config_map(namespace, "No_Name"))
    with pytest.raises(errors.NotFound):
        await kube.create(config_map("no-such-namespace", "a"))
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q", "namespace": namespace},
        "spec": {"hard": {"pods": "0"}},
    }
    await kube.apply(quota)
    cluster.kubectl(
        "-n", namespace, "wait", "resourcequota/q", "--for=jsonpath={.status.hard.pods}=0"
    )
    with pytest.raises(errors.QuotaExceeded, match="exceeded quota: q, requested: pods=1"):
        await kube.create(pod(namespace, "p", cluster.static_image, "true"))


async def test_a_missing_verb_is_named(cluster: Any, namespace: str, tmp_path: Path):
    from libs.kube.cluster import Cluster

    cluster.kubectl("-n", namespace, "create", "serviceaccount", "nobody")
    connected = await Cluster.connect(str(_kubeconfig_of(cluster, namespace, tmp_path)))
    try:
        with pytest.raises(errors.Forbidden) as caught:
            await connected.list(DEPLOYMENT, namespace)
    finally:
        await connected.close()
    assert (caught.value.verb, caught.value.resource) == ("list", "deployments.apps")


async def test_a_server_that_is_away_is_tried_for_a_bounded_time(tmp_path: Path, cluster: Any):
    from libs.kube.cluster import Cluster

    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    away = tmp_path / "kubeconfig"
    away.write_text(json.dumps(config))
    connected = await Cluster.connect(str(away), patience=1.0)
    began = time.monotonic()
    try:
        with pytest.raises(errors.Unavailable):
            await connected.list(POD, "default")
        async with connected.watch(POD, "default") as pods:
            with pytest.raises(errors.Unavailable):
                await pods.until("p", lambda _: True, 0.3)
    finally:
        await connected.close()
    assert 0.5 < time.monotonic() - began < 8


def _phase(manifest: dict[str, Any] | None) -> str:
    return (manifest or {}).get("status", {}).get("phase", "")


def _kubeconfig_of(cluster: Any, namespace: str, folder: Path) -> Path:
    token = cluster.kubectl("-n", namespace, "create", "token", "nobody").strip()
    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"][0]["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path
