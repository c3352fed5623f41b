"""What a person would do by hand: a bare pod, a Knative Service from an image that is there."""

from __future__ import annotations

import asyncio
import http.client
import time
from dataclasses import dataclass

from bench.http import BenchFailed
from libs.kube.cluster import Cluster
from libs.kube.kinds import KNATIVE_SERVICE, POD, Manifest

_SECONDS = 120.0
# Listens at once and answers everything with 200, as little as a server can.
_SERVER = (
    "import http.server as h, os, signal\n"
    # As the first process of its container it would live through the order to end, for minutes.
    "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    "class S(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200)\n"
    "        self.end_headers()\n"
    "h.ThreadingHTTPServer(('', 8080), S).serve_forever()\n"
)


def _container(image: str) -> Manifest:
    return {
        "name": "server",
        "image": image,
        "command": ["python", "-c", _SERVER],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }


@dataclass(frozen=True)
class ByHand:
    """Peers in a namespace of their own. `ingress` is Knative's, as "host:port"."""

    cluster: Cluster
    namespace: str
    image: str
    ingress: str

    async def pod_ready(self, name: str) -> float:
        """Create a bare pod, wait until it is Ready, remove it; milliseconds."""
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"bench": "pod"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [_container(self.image)],
            },
        }
        async with self.cluster.watch(POD, self.namespace, "bench=pod") as pods:
            await pods.ready(_SECONDS)
            began = time.perf_counter()
            await self.cluster.create(manifest)
            await pods.until(name, _is_ready, _SECONDS)
            spent = (time.perf_counter() - began) * 1000
            await self.cluster.delete(POD, self.namespace, name, grace_seconds=0)
            await pods.until(name, _is_gone, _SECONDS)
        return spent

    async def knative_answers(self, name: str, domain: str) -> float:
        """Create a Knative Service, call it until it answers 200, remove it with its pods;
        milliseconds until the 200."""
        manifest: Manifest = {
            "apiVersion": KNATIVE_SERVICE.api_version,
            "kind": KNATIVE_SERVICE.name,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"template": {"spec": {"containers": [_container(self.image)]}}},
        }
        began = time.perf_counter()
        await self.cluster.create(manifest)
        await asyncio.to_thread(self._until_200, f"{name}.{self.namespace}.{domain}")
        spent = (time.perf_counter() - began) * 1000
        await self.cluster.delete(KNATIVE_SERVICE, self.namespace, name)
        # Its proxy would drain for half a minute.
        selector = f"serving.knative.dev/service={name}"
        async with self.cluster.watch(POD, self.namespace, selector) as pods:
            await pods.ready(_SECONDS)
            for pod in list(pods.objects):
                await self.cluster.delete(POD, self.namespace, pod, grace_seconds=0)
                await pods.until(pod, _is_gone, _SECONDS)
        return spent

    def _until_200(self, host: str) -> None:
        address, _, port = self.ingress.rpartition(":")
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(address, int(port), timeout=30)
            try:
                connection.request("GET", "/", headers={"Host": host})
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass  # asked again below
            finally:
                connection.close()
            time.sleep(0.01)
        raise BenchFailed(f"{host} did not answer within {_SECONDS} s")


def _is_ready(pod: Manifest | None) -> bool | None:
    conditions = (pod or {}).get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready or None


def _is_gone(pod: Manifest | None) -> bool | None:
    return True if pod is None else None
