"""What pods of functions and of builds reach, tried from inside them.

What must not be reached is reached from a pod without a policy in the same run, so that a refusal
is the policy's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from urllib.parse import urlsplit

import pytest

from tests.cluster.release.load import Load
from tests.cluster.release.looking import wait_until
from tests.cluster.release.site import Site
from tests.cluster.release.sources import ECHO, image_archive, new
from tests.conformance.door import Door, Json, id_of

Targets = dict[str, tuple[str, int]]
OTHER = "another function's pod"
METADATA = ("169.254.169.254", 80)
TRY_SECONDS = 2

TRY = f"""
import concurrent.futures, json, socket

def attempt(target):
    name, (host, port) = target
    try:
        with socket.create_connection((host, port), {TRY_SECONDS}):
            return name, "reached"
    except OSError as error:
        return name, f"{{type(error).__name__}}: {{error}}"

def attempts(targets):
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        return dict(pool.map(attempt, targets.items()))
"""
HANDLER = TRY + "\ndef handler(event, ctx):\n    return attempts(json.loads(event['body']))\n"
# The package index is outside of the cluster, and has to be reached.
INSTALL = "RUN uv pip install --system --break-system-packages --target /tmp/six six"
REQUIRING = """# /// script
# dependencies = ["six"]
# ///
import http.server, os, six

class Server(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        body = six.__name__.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Server).serve_forever()
"""
PORTS = {"builder": 7001, "deployer": 7002, "janitor": 7003, "gateway": 8080}


def platform(site: Site) -> Targets:
    """Return the ports of the platform: of services and of the pods behind them."""
    found: Targets = {}
    for part in ("builder", "deployer", "janitor"):
        port = PORTS[part]
        (service,) = site.looker.list("service", site.namespace, site.parts.selector(part))
        address = service["spec"]["clusterIP"]
        if address != "None":
            found[f"{part} service"] = (address, port)
        pod = site.parts.pods(part)[0]["status"]["podIP"]
        found[f"{part} pod"] = (pod, port)
        found[f"{part} metrics"] = (pod, 9090)
    gateway = site.parts.pods("gateway")[0]["status"]["podIP"]
    found["gateway metrics"] = (gateway, 9090)
    found["database"] = _address(site.database_address)
    return found


def cluster(site: Site) -> Targets:
    """Return the cluster's own: the API server by its two addresses, and the node's kubelet."""
    host, port = _address(site.api_server_address)
    service = site.looker.get("service", "default", "kubernetes")
    assert service is not None
    (node, *_) = [
        address["address"]
        for address in site.looker.list("node", "")[0]["status"]["addresses"]
        if address["type"] == "InternalIP"
    ]
    return {
        "API server": (host, port),
        "API server's service": (service["spec"]["clusterIP"], 443),
        "kubelet": (node, 10250),
    }


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def from_a_free_pod(site: Site, targets: Targets, namespace: str) -> Json:
    """Return what is reached by a pod that no policy selects."""
    program = f"{TRY}\nprint(json.dumps(attempts({targets!r})))"
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "free", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "free",
                    "image": site.cluster.python_image,
                    "command": ["python3", "-c", program],
                }
            ],
        },
    }
    looker = site.looker
    looker.kubectl("create", "-f", "-", stdin=json.dumps(pod))

    def ended() -> bool:
        found = looker.get("pod", namespace, "free")
        return found is not None and found["status"].get("phase") in ("Succeeded", "Failed")

    wait_until(ended, 60, "the pod without a policy has ended")
    return json.loads(looker.kubectl("logs", "-n", namespace, "free"))


def must_not(site: Site) -> Targets:
    """Return what neither functions nor builds reach."""
    return platform(site) | cluster(site) | {"metadata": METADATA}


def check(reached: Json, free: Json, forbidden: Targets, allowed: Targets, *, who: str) -> None:
    """Check what a pod reached beside what a pod without a policy reached."""
    wrongly = {name for name in forbidden if reached[name] == "reached"}
    assert not wrongly, f"{who} reaches {wrongly}"
    # Nobody can tell a policy from a place where nothing listens.
    vacuous = {name for name in forbidden if free[name] != "reached"} - {"metadata"}
    assert {name for name in vacuous if not is_guarded(name)} == set(), free
    # Guarded from outside as well.
    open_to_all = {name for name in forbidden if is_guarded(name)} - vacuous
    assert not open_to_all, f"anybody in the cluster reaches {open_to_all}"
    missed = {n: reached[n] for n in allowed if free[n] == "reached" and reached[n] != "reached"}
    assert not missed, f"{who} does not reach {missed}"


def is_guarded(name: str) -> bool:
    """Whether a target's own policy keeps everybody away; that it listens, its readiness says."""
    return name == OTHER or (name.endswith((" pod", " service")) and not name.startswith("API"))


async def test_a_function(site: Site, door: Door, namespace: str) -> None:
    other = await door.ready(handler=ECHO)
    inside = await door.ready(handler=HANDLER, timeout="60s")
    targets = await asyncio.to_thread(must_not, site)
    targets["registry"] = _address(site.registry_address)
    targets["storage"] = _address(site.storage_address)
    (service,) = await asyncio.to_thread(
        site.looker.list, "service", site.namespace, site.parts.selector("gateway")
    )
    name = f"{service['metadata']['name']}.{site.namespace}.svc.cluster.local"
    # By its name, so that DNS is tried as well.
    allowed: Targets = {"gateway": (name, service["spec"]["ports"][0]["port"])}
    # Called all the time, so that its pod stays.
    async with Load({f"{door.url}/f/{id_of(other)}": id_of(other)}) as tally:
        await tally.more(1)
        (pod, *_) = await asyncio.to_thread(
            site.looker.list, "pod", site.functions, f"mayfly.dev/uid={other['uid']}"
        )
        targets[OTHER] = (pod["status"]["podIP"], 8080)
        free = await asyncio.to_thread(from_a_free_pod, site, targets | allowed, namespace)
        answer = await door.call(inside, method="POST", content=json.dumps(targets | allowed))
    assert answer.status_code == 200, answer.text
    assert free["gateway"] == "reached", free
    check(answer.json(), free, targets, allowed, who="a function")


async def test_a_build(site: Site, door: Door, namespace: str) -> None:
    targets = await asyncio.to_thread(must_not, site)
    allowed: Targets = {
        "registry": _address(site.registry_address),
        "storage": _address(site.storage_address),
    }
    program = f"{TRY}\nprint('tried ' + json.dumps(attempts({targets | allowed!r})))"
    quoted = json.dumps(["python3", "-c", program])
    function = await door.create(
        archive=image_archive(site.cluster.python_image, f"RUN {quoted}", INSTALL)
    )
    free = await asyncio.to_thread(from_a_free_pod, site, targets | allowed, namespace)
    line = await printed(door, function, lambda text: text.startswith("tried "))
    assert free["registry"] == free["storage"] == "reached", free
    check(json.loads(line.removeprefix("tried ")), free, targets, allowed, who="a build")
    await door.settled(function, "READY")


@pytest.mark.needs_index
async def test_what_installs_packages_reaches_the_index(site: Site, door: Door) -> None:
    """On a Deployment that is the function's own pod, before its code runs."""
    function = await door.ready(script=new(REQUIRING))
    assert (await door.call(function)).text == "six"


async def printed(door: Door, function: Json, wanted: Callable[[str], bool]) -> str:
    """Return the first line of a build that is wanted."""
    async with asyncio.timeout(90), aclosing(door.events(function)) as events:
        async for event in events:
            text = str(event.get("log", {}).get("text", ""))
            if wanted(text):
                return text
    raise AssertionError("the build printed no such line")


async def test_names_reach_only_functions(site: Site, door: Door) -> None:
    """The gateway routes to functions, never to other Services of their namespace."""
    function = await door.ready(handler=ECHO)
    names = await asyncio.to_thread(site.looker.names, "service", site.functions)
    assert names
    host = urlsplit(door.url).netloc
    for name in [*names, f"fn-{function['uid']}", "kubernetes", site.parts.deployment("deployer")]:
        answer = await door.http.get(f"/f/{name}", headers={"host": host})
        assert answer.status_code == 404, (name, answer.status_code, answer.text)
        answer = await door.http.get("/", headers={"host": f"{name}.localhost"})
        assert answer.status_code == 404, (name, answer.status_code, answer.text)


@pytest.mark.parametrize("namespaces", ["functions", "builds"])
def test_what_comes_in(site: Site, namespaces: str, namespace: str) -> None:
    """Nothing of another namespace reaches a pod of functions or builds."""
    target = {"functions": site.functions, "builds": site.builds}[namespaces]
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "listens", "namespace": target},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "listens",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "image": site.cluster.python_image,
                    "command": ["python3", "-m", "http.server", "8080"],
                    # A node that does not tell its room has none.
                    "resources": {"requests": {"ephemeral-storage": "0"}},
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                }
            ],
        },
    }
    looker = site.looker
    looker.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        looker.kubectl("wait", "pod/listens", "-n", target, "--for=condition=Ready")
        found = looker.get("pod", target, "listens")
        assert found is not None
        free = from_a_free_pod(site, {"it": (found["status"]["podIP"], 8080)}, namespace)
        assert free["it"] != "reached", free
    finally:
        looker.kubectl("delete", "pod", "listens", "-n", target, "--wait=false")
