"""The Knative driver against a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.kube.cluster import Cluster
from libs.kube.kinds import DEPLOYMENT, Kind
from services.deployer.drivers import base
from services.deployer.drivers.cluster.settings import ClusterSettings
from services.deployer.drivers.knative.driver import KnativeDriver
from tests.cluster.drivers.images import handler_image, script_image

pytestmark = pytest.mark.timeout(240)

SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("{word} " + os.environ["GREETING"]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
print("serving {word}", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
TALKS = """
import http.server, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"9\\r\\ndata: 1\\n\\n\\r\\n")
            time.sleep(0.1)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
MADE_BY_KNATIVE = (
    "configuration.serving.knative.dev",
    "route.serving.knative.dev",
    "ingress.networking.internal.knative.dev",
    "serverlessservice.networking.internal.knative.dev",
    "podautoscaler.autoscaling.internal.knative.dev",
    "deployment.apps",
    "replicaset.apps",
    "service",
    "endpointslice.discovery.k8s.io",
    "pod",
)
LIMITS = base.Limits(memory_bytes=128 << 20, processes=64, open_files=256, cpu_seconds=60)


class Running:
    """A driver with one that follows, and what it was told."""

    def __init__(self, driver: KnativeDriver, namespace: str, address: str) -> None:
        self.driver = driver
        self.namespace = namespace
        self.address = address
        self.wanted: dict[str, base.Workload] = {}
        self.told: list[base.Notification] = []
        self._more = asyncio.Event()

    async def follow(self) -> None:
        async def wanted(uid: str) -> base.Workload | None:
            return self.wanted.get(uid)

        async for notification in self.driver.notifications(wanted):
            self.told.append(notification)
            self._more.set()

    async def deploy(
        self, workload: base.Workload, early: base.Early | None = None
    ) -> base.Deployed:
        deployed = await self.driver.deploy(workload, early)
        self.wanted[workload.uid] = workload
        return deployed

    async def remove(self, *workloads: base.Workload, at_once: bool = False) -> None:
        """Remove until nothing is left; a pod that is scaled down drains for half a minute."""
        async with asyncio.timeout(90):
            left = {each.uid for each in workloads}
            while left:
                removed = await self.driver.remove(sorted(left))
                left = {uid for uid, found in removed.items() if base.still_there(found)}
                assert not (left and at_once), removed

    def streamed(
        self, client: httpx.AsyncClient, deployed: base.Deployed
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        assert deployed.endpoint is not None
        return client.stream(
            "GET", f"http://{self.address}/", headers={"host": deployed.endpoint.host}
        )

    async def until_told(self, fits: Callable[[base.Notification], bool]) -> None:
        async with asyncio.timeout(60):
            while not any(map(fits, self.told)):
                self._more.clear()
                await self._more.wait()

    async def get(self, deployed: base.Deployed) -> str:
        assert deployed.endpoint is not None
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            url = f"http://{self.address}/"
            answer = await client.get(url, headers={"host": deployed.endpoint.host})
        assert answer.status_code == 200
        return answer.text


@pytest.fixture
async def running(cluster: Any, namespace: str) -> AsyncIterator[Running]:
    query = "jsonpath={.spec.clusterIP}"
    address = cluster.kubectl(
        "-n", "kourier-system", "get", "service", "kourier-internal", "-o", query
    )
    settings = ClusterSettings(
        installation=namespace, namespace=namespace, kubeconfig=cluster.kubeconfig
    )
    driver = KnativeDriver(settings, ingress=f"{address}:80")
    await driver.start()
    running = Running(driver, namespace, address)
    following = asyncio.create_task(running.follow())
    try:
        yield running
    finally:
        uids = {each.uid for each in await driver.list_resources() if each.uid}
        running.wanted.clear()
        # A pod that drains by then ends without anybody waiting for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(8):
                await driver.remove(sorted(uids))
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await driver.close()


def script(image: str, **changes: Any) -> base.Workload:
    workload = base.Workload(
        function_id="hello",
        uid=secrets.token_hex(8),
        revision=1,
        kind="script",
        artefact_dir=None,
        entry="script.py",
        interpreter=None,
        environment=None,
        env={"GREETING": "hi"},
        port=8000,
        health=None,
        timeout=10.0,
        start_timeout=20.0,
        idle_stop=6.0,
        concurrency=10,
        min_instances=0,
        max_instances=2,
        url="http://hello.localhost",
        limits=LIMITS,
        image=image,
    )
    return replace(workload, **changes)


def pushed(cluster: Any, folder: Path, source: str) -> str:
    return script_image(cluster.python_image, cluster.registry, folder, source)


async def test_deploy_update_failed_update_and_removal(
    cluster: Any, running: Running, tmp_path: Path
):
    one = script(pushed(cluster, tmp_path, SERVER.replace("{word}", "one")))
    early: list[base.Endpoint] = []
    first = await running.deploy(one, early.append)
    assert early == [first.endpoint]
    assert await running.get(first) == "one hi"
    assert first.detail.startswith("knative, ")
    again = await running.deploy(one)
    assert again.endpoint == first.endpoint

    two = replace(
        one,
        revision=2,
        image=pushed(cluster, tmp_path, SERVER.replace("{word}", "two")),
        env={"GREETING": "ho"},
    )
    second = await running.deploy(two)
    await running.driver.settle(one.uid, 2)
    assert second.endpoint == first.endpoint
    assert await running.get(second) == "two ho"

    broken = pushed(cluster, tmp_path, "print('oh no')\nraise SystemExit(3)")
    with pytest.raises(base.DeployFailed) as caught:
        await running.driver.deploy(replace(two, revision=3, image=broken))
    assert (caught.value.reason, caught.value.exit_code) == ("SCRIPT_EXITED", 3)
    assert caught.value.log_tail == ["oh no"]
    assert await running.get(second) == "two ho"
    left = await running.driver.list_resources()
    own = ("service.serving.knative.dev", "revision.serving.knative.dev", "secret")
    made = {each.id for each in left if each.type in own}
    assert len(made) == 3
    assert f"fn-{one.uid}-00002" in made

    running.wanted.clear()
    removed = await running.driver.remove([one.uid])
    assert {each.id for each in removed[one.uid]} >= made
    assert await running.driver.list_resources() == []


async def test_a_removal_that_returns_has_left_nothing(
    cluster: Any, running: Running, tmp_path: Path
):
    """Of functions that sleep as well: a node does not hurry a pod that was told to end before, and
    until that has ended, its function is not gone; others are."""
    image = pushed(cluster, tmp_path, SERVER.replace("{word}", "one"))
    asleep, awake = [script(image) for _ in range(4)], script(image, min_instances=1)
    await asyncio.gather(*map(running.deploy, [*asleep, awake]))
    look = ("-n", running.namespace, "get", ",".join(MADE_BY_KNATIVE), "-o", "name")
    made = {name.partition("/")[0] for name in cluster.kubectl(*look).split()}
    assert made == set(MADE_BY_KNATIVE)
    running.told.clear()
    for each in asleep:
        await running.until_told(lambda told, uid=each.uid: told == base.BecameIdle(uid))
    running.wanted.clear()
    removed = await running.driver.remove([each.uid for each in [*asleep, awake]])
    assert base.still_there(removed[awake.uid]) == ""
    assert "still there: Pod" in base.still_there(removed[asleep[-1].uid])
    assert f"pod/fn-{asleep[-1].uid}" in cluster.kubectl(*look)
    await running.remove(*asleep)
    assert cluster.kubectl(*look) == ""


async def test_what_is_being_answered_ends_with_a_removal(
    cluster: Any, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The garbage collector, which is quicker now and then, would leave a pod five minutes."""
    delete = Cluster.delete
    waited: list[str] = []

    async def late(self: Cluster, kind: Kind, namespace: str, name: str, **how: Any) -> bool:
        if kind == DEPLOYMENT:
            # As deep below the Revision as the pods: the collector would have come to both.
            slices = f"kubernetes.io/service-name={name[: -len('-deployment')]}-private"
            wait = ("-n", namespace, "wait", "--for=delete", "endpointslice", "-l", slices)
            await asyncio.to_thread(cluster.kubectl, *wait, "--timeout=20s")
            waited.append(name)
        return await delete(self, kind, namespace, name, **how)

    monkeypatch.setattr(Cluster, "delete", late)
    image = pushed(cluster, tmp_path, TALKS)
    some = [script(image, max_instances=1) for _ in range(4)]
    deployed = await asyncio.gather(*map(running.deploy, some))
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client, AsyncExitStack() as stack:
        answers: list[AsyncIterator[str]] = []
        for each in deployed:
            response = await stack.enter_async_context(running.streamed(client, each))
            answers.append(response.aiter_lines())
            assert await anext(answers[-1]) == "data: 1"
        running.wanted.clear()
        await running.remove(*some, at_once=True)
        assert len(waited) >= len(some)
        for lines in answers:
            with contextlib.suppress(httpx.RemoteProtocolError):
                async with asyncio.timeout(3):
                    async for line in lines:
                        assert line in {"data: 1", ""}


async def test_failures_have_their_reasons(cluster: Any, running: Running, tmp_path: Path):
    silent = pushed(cluster, tmp_path, "import time\nprint('asleep', flush=True)\ntime.sleep(99)")
    wrong = handler_image(cluster.python_image, cluster.registry, tmp_path, "import nope")
    gone = f"{silent.partition('@')[0]}@sha256:{'0' * 64}"
    cases = {
        "SCRIPT_NEVER_LISTENED": script(silent, start_timeout=3.0),
        "HANDLER_IMPORT_FAILED": script(wrong, kind="handler", port=8080),
        "IMAGE_PULL_FAILED": script(gone),
        "UNSCHEDULABLE": script(silent, limits=replace(LIMITS, memory_bytes=8 << 40)),
    }
    failures = await asyncio.gather(
        *(running.driver.deploy(each) for each in cases.values()), return_exceptions=True
    )
    found = {failure.reason: failure for failure in failures}  # type: ignore[union-attr]
    assert found.keys() == cases.keys()
    assert found["SCRIPT_NEVER_LISTENED"].log_tail == ["asleep"]
    assert found["HANDLER_IMPORT_FAILED"].message == "ModuleNotFoundError: No module named 'nope'"
    assert "not found" in found["IMAGE_PULL_FAILED"].message


async def test_scripts_in_images_listen_as_they_may_elsewhere(
    cluster: Any, running: Running, tmp_path: Path
):
    """Loopback will do, and the wrong port is named."""
    loopback = SERVER.replace("0.0.0.0", "127.0.0.1").replace("{word}", "inside")
    assert loopback.count("127.0.0.1") == 1
    elsewhere = SERVER.replace('int(os.environ["PORT"])', "9000")
    one = script(pushed(cluster, tmp_path, loopback))
    assert await running.get(await running.deploy(one)) == "inside hi"
    with pytest.raises(base.DeployFailed) as caught:
        await running.driver.deploy(script(pushed(cluster, tmp_path, elsewhere), start_timeout=5.0))
    assert caught.value.reason == "SCRIPT_LISTENS_ELSEWHERE"
    assert "9000" in caught.value.message


async def test_a_quota_is_named(cluster: Any, running: Running, tmp_path: Path):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "0"}},
    }
    cluster.kubectl("-n", running.namespace, "apply", "-f", "-", stdin=json.dumps(quota))
    with pytest.raises(base.DeployFailed) as caught:
        await running.driver.deploy(script(pushed(cluster, tmp_path, SERVER)))
    assert caught.value.reason == "CLUSTER_QUOTA_EXCEEDED"
    assert "exceeded quota: q" in caught.value.message


async def test_what_others_change_is_put_right(cluster: Any, running: Running, tmp_path: Path):
    workload = script(pushed(cluster, tmp_path, SERVER.replace("{word}", "one")))
    await running.deploy(workload)
    service, secret = f"ksvc/fn-{workload.uid}", f"secret/fn-{workload.uid}-00001"
    patch = [
        {"op": "replace", "path": "/spec/template/spec/timeoutSeconds", "value": 77},
        {"op": "remove", "path": "/spec/template/metadata/name"},
    ]
    for command, what in (
        (("delete", secret), "Secret"),
        (("patch", service, "--type=json", "-p", json.dumps(patch)), "was changed: spec.template"),
        (("delete", service), "was deleted"),
    ):
        running.told.clear()
        cluster.kubectl("-n", running.namespace, *command)
        await running.until_told(
            lambda each, what=what: isinstance(each, base.Reconciled) and what in each.text
        )
    repaired = await running.deploy(workload)
    assert await running.get(repaired) == "one hi"


async def test_idle_active_and_what_it_writes(cluster: Any, running: Running, tmp_path: Path):
    workload = script(pushed(cluster, tmp_path, SERVER.replace("{word}", "one")))
    uid = workload.uid
    deployed = await running.deploy(workload)
    await running.until_told(
        lambda each: isinstance(each, base.LogLine) and each.text == "serving one"
    )
    await running.until_told(
        lambda each: isinstance(each, base.InstanceStarted) and each.uid == uid
    )
    await running.until_told(lambda each: each == base.BecameIdle(uid))
    running.told.clear()
    assert await running.get(deployed) == "one hi"
    await running.until_told(lambda each: each == base.BecameActive(uid))
