"""The deployment driver against a real cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import secrets
import subprocess
import tarfile
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.deployer.drivers.base import (
    DeployFailed,
    DriverUnavailable,
    EndpointMoved,
    InstanceStarted,
    Kind,
    Limits,
    LogLine,
    Notification,
    Reconciled,
    Workload,
)
from services.deployer.drivers.cluster.settings import ClusterSettings
from services.deployer.drivers.deployment.driver import DeploymentDriver
from services.deployer.drivers.deployment.shape import Setup
from tests.cluster.conftest import Cluster

pytestmark = pytest.mark.needs_cluster

SERVE = (
    "import http.server\n"
    "class Hello(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        body = {answer!r}.encode()\n"
    "        self.send_response(200)\n"
    "        self.send_header('content-length', str(len(body)))\n"
    "        self.end_headers()\n"
    "        self.wfile.write(body)\n"
    "print('listening', flush=True)\n"
    "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), Hello).serve_forever()\n"
)
UV = Path(__file__).resolve().parents[3] / ".venv" / "bin" / "uv"


def script(code: str, **changes: Any) -> Workload:
    """A script of a uid of its own."""
    return workload("script", {"script.py": code}, 8000, **changes)


def handler(code: str, **changes: Any) -> Workload:
    """A handler of a uid of its own."""
    return workload("handler", {"handler.py": code}, 8080, **changes)


def workload(kind: Kind, files: dict[str, str], port: int, **changes: Any) -> Workload:
    made = Workload(
        function_id="hello", uid=secrets.token_hex(8), revision=1, kind=kind, artefact_dir=None,
        entry=next(iter(files)), interpreter=None, environment=None, env={"COLOUR": "green"},
        port=port, health=None, timeout=5, start_timeout=5, idle_stop=60, concurrency=4,
        min_instances=0, max_instances=4, url="http://localhost/f/hello",
        limits=Limits(1 << 28, 64, 1024, 3600), bundle=bundle(files),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def bundle(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


async def get(address: str) -> bytes:
    """What is answered at an endpoint's address; the tests run where pods can be reached."""
    url = f"http://{address.removeprefix('tcp:')}/"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with await asyncio.to_thread(opener.open, url, timeout=5) as answer:
        return answer.read()


class Followed:
    """A driver, and all that it has told."""

    def __init__(self, driver: DeploymentDriver) -> None:
        self.driver = driver
        self.told: list[Notification] = []
        self.wanted: dict[str, Workload] = {}
        self.rows_away: Callable[[], bool] = lambda: False
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._follow())

    async def deploy(self, made: Workload) -> str:
        """Deploy and settle, as the deployer does; return the address."""
        deployed = await self.driver.deploy(made)
        assert deployed.endpoint is not None
        self.wanted[made.uid] = made
        await self.driver.settle(made.uid, made.revision)
        return deployed.endpoint.address

    async def remove(self, uid: str) -> Any:
        self.wanted.pop(uid, None)
        return (await self.driver.remove([uid]))[uid]

    async def until(self, condition: Any, after: int = 0) -> Notification:
        """The first of what was told that `condition` is true of."""
        async with asyncio.timeout(30):
            while True:
                for notification in self.told[after:]:
                    if condition(notification):
                        return notification
                self._changed.clear()
                await self._changed.wait()

    async def endpoint(self, uid: str, address: bool, after: int = 0) -> str:
        """Wait for a move of a function's endpoint to somewhere, or to nowhere."""
        moved = await self.until(
            lambda n: (
                isinstance(n, EndpointMoved)
                and n.uid == uid
                and bool(n.endpoint.address) == address
            ),
            after,
        )
        assert isinstance(moved, EndpointMoved)
        return moved.endpoint.address

    async def _follow(self) -> None:
        async def wanted(uid: str) -> Workload | None:
            if self.rows_away():
                raise DriverUnavailable("the rows cannot be read")
            return self.wanted.get(uid)

        async for notification in self.driver.notifications(wanted):
            self.told.append(notification)
            self._changed.set()


@pytest_asyncio.fixture
async def followed(cluster: Cluster, namespace: str) -> AsyncIterator[Followed]:
    settings = ClusterSettings(installation=namespace, namespace=namespace)
    driver = DeploymentDriver(Setup(settings, cluster.python_image, "mayfly-test-index"))
    await driver.start()
    made = Followed(driver)
    yield made
    made.task.cancel()
    await asyncio.wait([made.task])
    await driver.close()


@asynccontextmanager
async def successor(
    followed: Followed, cluster: Cluster, namespace: str
) -> AsyncGenerator[Followed]:
    """The driver of another replica, which has been given what the first is to run."""
    settings = ClusterSettings(installation=namespace, namespace=namespace)
    driver = DeploymentDriver(Setup(settings, cluster.python_image))
    await driver.start()
    try:
        await driver.restore(list(followed.wanted.values()), {})
        made = Followed(driver)
        made.wanted = followed.wanted
        yield made
        made.task.cancel()
        await asyncio.wait([made.task])
    finally:
        await driver.close()


async def test_a_script_from_start_to_nothing(followed: Followed) -> None:
    made = script(SERVE.format(answer="one"))
    address = await followed.deploy(made)
    assert await get(address) == b"one"
    await followed.until(lambda n: isinstance(n, LogLine) and n.text == "listening")
    types = {each.type for each in await followed.driver.list_resources()}
    assert types == {
        "deployment.apps", "replicaset.apps", "pod", "service", "configmap", "secret",
    }  # fmt: skip
    removed = await followed.remove(made.uid)
    assert {each.type for each in removed} >= types - {"replicaset.apps", "pod"}
    assert await followed.driver.list_resources() == []


async def test_a_handler(followed: Followed) -> None:
    code = (
        "import os\ndef handler(event, ctx):\n    return [os.environ['COLOUR'], ctx.function_id]\n"
    )
    address = await followed.deploy(handler(code))
    assert json.loads(await get(address)) == ["green", "hello"]


async def test_a_script_that_listens_on_loopback_only(followed: Followed) -> None:
    code = SERVE.format(answer="from inside").replace("0.0.0.0", "127.0.0.1")
    address = await followed.deploy(script(code))
    assert await get(address) == b"from inside"


@pytest.mark.parametrize("kind", ["script", "handler"])
async def test_open_files_are_limited(followed: Followed, kind: str) -> None:
    limit = "__import__('resource').getrlimit(7)"
    limits = Limits(1 << 28, 64, 123, 3600)
    if kind == "script":
        code = SERVE.format(answer="x").replace("'x'", f"repr(list({limit}))")
        made = script(code, limits=limits)
    else:
        made = handler(f"def handler(event, ctx): return list({limit})\n", limits=limits)
    assert (await get(await followed.deploy(made))).replace(b" ", b"") == b"[123,123]"


@pytest.mark.needs_index
async def test_a_script_with_requirements(
    followed: Followed, cluster: Cluster, namespace: str
) -> None:
    source = json.loads(
        cluster.kubectl("get", "secret", "mayfly-test-index", "-n", "default", "-o", "json")
    )
    source["metadata"] = {"name": "mayfly-test-index", "namespace": namespace}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(source))
    lock = subprocess.run(
        [
            *(str(UV), "pip", "compile", "-", "--generate-hashes", "--only-binary", ":all:"),
            *("--python-version", "3.13", "--no-header", "--quiet"),
        ],
        input="six\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code = "import six\n" + SERVE.format(answer="with six")
    address = await followed.deploy(script(code, lock=lock, start_timeout=20))
    assert await get(address) == b"with six"


@pytest.mark.parametrize(
    ("made", "reason", "said"),
    [
        (script("import sys\nprint('oh no')\nsys.exit(3)\n"), "SCRIPT_EXITED", "oh no"),
        (script("import time\ntime.sleep(60)\n", start_timeout=1), "SCRIPT_NEVER_LISTENED", ""),
        (
            script(SERVE.format(answer="x").replace("8000", "9000"), start_timeout=4),
            "SCRIPT_LISTENS_ELSEWHERE",
            "",
        ),
        (
            script("import six\n", lock="six==1.17.0 --hash=sha256:" + "0" * 64),
            "INSTALL_FAILED",
            "",
        ),
        (handler("raise ValueError('broken')\n"), "HANDLER_IMPORT_FAILED", "broken"),
        (
            script("", limits=Limits(1 << 45, 64, 1024, 3600)),
            "UNSCHEDULABLE",
            "",
        ),
    ],
    ids=["exits", "never listens", "listens elsewhere", "installs not", "imports not", "no room"],
)
async def test_what_does_not_start_says_why_and_leaves_nothing(
    followed: Followed, cluster: Cluster, namespace: str, made: Workload, reason: str, said: str
) -> None:
    cluster.kubectl("create", "secret", "generic", "mayfly-test-index", "-n", namespace)
    with pytest.raises(DeployFailed) as raised:
        await followed.driver.deploy(made)
    assert raised.value.reason == reason, raised.value
    assert said in "\n".join([raised.value.message, *raised.value.log_tail])
    assert raised.value.fix
    await followed.driver.fail(made.uid, 503, b"{}")
    assert await followed.driver.list_resources() == []


async def test_an_image_that_is_not_there(followed: Followed, cluster: Cluster) -> None:
    image = f"{cluster.registry}/mayfly-test/none@sha256:{'0' * 64}"
    with pytest.raises(DeployFailed) as raised:
        await followed.driver.deploy(workload("image", {"": ""}, 8000, image=image, bundle=b""))
    assert raised.value.reason == "IMAGE_PULL_FAILED"


async def test_a_quota_that_is_used_up(
    followed: Followed, cluster: Cluster, namespace: str
) -> None:
    cluster.kubectl("create", "quota", "small", "--hard=pods=0", "-n", namespace)
    with pytest.raises(DeployFailed) as raised:
        await followed.driver.deploy(script(SERVE.format(answer="x")))
    assert raised.value.reason == "CLUSTER_QUOTA_EXCEEDED"
    assert "small" in raised.value.message


async def test_it_sleeps_and_wakes(followed: Followed) -> None:
    made = script(SERVE.format(answer="awake"))
    await followed.deploy(made)
    await followed.endpoint(made.uid, True)
    await followed.driver.sleep(made.uid)
    await followed.endpoint(made.uid, False)
    after = len(followed.told)
    await followed.driver.wake(made.uid)
    assert await get(await followed.endpoint(made.uid, True, after)) == b"awake"
    # Whoever woke it a moment ago finds it awake.
    with pytest.raises(DriverUnavailable):
        await followed.driver.sleep(made.uid)
    after = len(followed.told)
    await followed.driver.wake(made.uid)
    assert await get(await followed.endpoint(made.uid, True, after)) == b"awake"


async def test_more_instances_and_fewer_again(followed: Followed) -> None:
    made = script(SERVE.format(answer="many"))
    await followed.deploy(made)
    await followed.driver.scale(made.uid, 3, ())
    three = await followed.until(
        lambda n: isinstance(n, EndpointMoved) and len(n.endpoint.others) == 2
    )
    assert isinstance(three, EndpointMoved)
    # Which of them ends can be told only of those that the kubelet calls ready too.
    await followed.until(
        lambda _: len([n for n in followed.told if isinstance(n, InstanceStarted)]) == 3
    )
    keep, after = three.endpoint.others[1], len(followed.told)
    await followed.driver.scale(made.uid, 1, [keep])
    await followed.until(
        lambda n: (
            isinstance(n, EndpointMoved) and n.endpoint.address == keep and not n.endpoint.others
        ),
        after,
    )


async def test_an_update_moves_when_it_answers_and_a_failing_one_changes_nothing(
    followed: Followed,
) -> None:
    one = script(SERVE.format(answer="one"))
    before = await followed.deploy(one)
    broken = dataclasses.replace(one, revision=2, bundle=bundle({"script.py": "raise SystemExit"}))
    with pytest.raises(DeployFailed):
        await followed.driver.deploy(broken)
    assert await get(before) == b"one"
    three = dataclasses.replace(
        one, revision=3, bundle=bundle({"script.py": SERVE.format(answer="three")})
    )
    address = await followed.deploy(three)
    assert await get(address) == b"three"

    async def old() -> list[str]:
        found = await followed.driver.list_resources()
        return [each.id for each in found if "revision 1" in each.detail]

    async with asyncio.timeout(30):
        while await old():
            await asyncio.wait([followed.task], timeout=0.2)
    names = {each.id for each in await followed.driver.list_resources() if each.type != "pod"}
    assert not any("00002" in name for name in names), names


async def test_requests_in_flight_end_before_an_old_revision_does(followed: Followed) -> None:
    slow = SERVE.format(answer="slow").replace(
        "        body =", "        import time; time.sleep(2)\n        body ="
    )
    one = script(slow)
    address = await followed.deploy(one)
    answer = asyncio.create_task(get(address))
    two = dataclasses.replace(
        one, revision=2, bundle=bundle({"script.py": SERVE.format(answer="two")})
    )
    await followed.deploy(two)
    assert await answer == b"slow"


@pytest.mark.parametrize("kind", ["configmap", "service", "deployment"])
async def test_what_somebody_removes_comes_back(
    followed: Followed, cluster: Cluster, namespace: str, kind: str
) -> None:
    made = script(SERVE.format(answer="back"))
    await followed.deploy(made)
    selector = f"mayfly.dev/uid={made.uid}"
    cluster.kubectl("delete", kind, "-n", namespace, "-l", selector, "--wait=false")
    told = await followed.until(lambda n: isinstance(n, Reconciled) and n.uid == made.uid)
    assert isinstance(told, Reconciled)
    assert "deleted" in told.text
    assert cluster.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "name")


async def test_what_came_back_is_told_although_the_rows_were_away_then(
    followed: Followed, cluster: Cluster, namespace: str
) -> None:
    made = script(SERVE.format(answer="back"))
    await followed.deploy(made)
    one = ("configmap", "-n", namespace, "-l", f"mayfly.dev/uid={made.uid}")

    def uid() -> str:
        return cluster.kubectl("get", *one, "-o", "jsonpath={.items[*].metadata.uid}")

    before, refusals = uid(), [True]
    followed.rows_away = lambda: uid() not in ("", before) and bool(refusals) and refusals.pop()
    cluster.kubectl("delete", *one, "--wait=false")
    told = await followed.until(lambda n: isinstance(n, Reconciled) and n.uid == made.uid)
    assert isinstance(told, Reconciled)
    assert "ConfigMap" in told.text
    assert not refusals


async def test_what_went_while_nobody_followed_comes_back_and_is_told(
    followed: Followed, cluster: Cluster, namespace: str
) -> None:
    made = script(SERVE.format(answer="back"))
    await followed.deploy(made)
    followed.task.cancel()
    await asyncio.wait([followed.task])
    cluster.kubectl("delete", "deployment", "-n", namespace, "-l", f"mayfly.dev/uid={made.uid}")
    async with successor(followed, cluster, namespace) as second:
        told = await second.until(lambda n: isinstance(n, Reconciled) and n.uid == made.uid)
        assert isinstance(told, Reconciled)
        assert "Deployment" in told.text
        assert await get(await second.endpoint(made.uid, True)) == b"back"


async def test_another_replica_takes_over(
    followed: Followed, cluster: Cluster, namespace: str
) -> None:
    made = script(SERVE.format(answer="still here"))
    await followed.deploy(made)
    async with successor(followed, cluster, namespace) as second:
        assert await get(await second.endpoint(made.uid, True)) == b"still here"
