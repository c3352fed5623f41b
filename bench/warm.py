"""The warm path: what the gateway costs a request, beside an Envoy with a static configuration."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from bench.figures import Figure
from bench.http import BenchFailed, Client, first_200
from tests.conformance.standalone import free_port

SECONDS = 2
CONNECTIONS = 16
SERVER = '''# /// script
# dependencies = []
# ///
"""Answers every request with the same few bytes, as fast as asyncio can."""
import asyncio

ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-length: 3\\r\\ncontent-type: text/plain\\r\\n\\r\\nok\\n"


class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.rest = transport, b""

    def data_received(self, data):
        self.rest += data
        count = self.rest.count(b"\\r\\n\\r\\n")
        if count:
            self.rest = self.rest.rpartition(b"\\r\\n\\r\\n")[2]
            self.transport.write(ANSWER * count)


async def main():
    server = await asyncio.get_running_loop().create_server(Server, "0.0.0.0", 8000, backlog=1024)
    await server.serve_forever()


asyncio.run(main())
'''


@dataclass
class Way:
    """One way to the function, and its figures."""

    url: str
    rate: Figure
    cpu: Figure | None = None
    envoy: int = 0


class WarmPath:
    """The same function directly, behind a static Envoy, and behind the gateway."""

    def __init__(self, client: Client, data_dir: Path, pid: int, place: Path) -> None:
        self._client = client
        self._id = "bench-warm"
        client.create(self._id, script=SERVER, ttl="3600s", concurrency=1000, maxInstances=1)
        client.expect("GET", f"/f/{self._id}/")
        host, port = endpoint(data_dir, self._id)
        gateway_pid = envoy_below(pid)
        static_port = free_port()
        config = place / "static-envoy.json"
        config.write_text(json.dumps(static_envoy(static_port, host, port)))
        binary = processes.command(gateway_pid).split()[0]
        self._static = subprocess.Popen(
            [binary, "-c", str(config), "--use-dynamic-base-id", "-l", "error"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        first_200("127.0.0.1", static_port, "/")
        direct_rate = Figure("requests/s, function directly", "1/s")
        static_rate = Figure("requests/s, static Envoy", "1/s")
        static_cpu = Figure("CPU a request, static Envoy", "us")
        ours_rate = Figure("requests/s, gateway", "1/s", peer=static_rate)
        ours_cpu = Figure("CPU a request, gateway's Envoy", "us", peer=static_cpu, bound=1.25)
        gateway = f"http://127.0.0.1:{client.port}/f/{self._id}/"
        self._paths = [
            Way(f"http://{host}:{port}/", direct_rate),
            Way(f"http://127.0.0.1:{static_port}/", static_rate, static_cpu, self._static.pid),
            Way(gateway, ours_rate, ours_cpu, gateway_pid),
        ]
        missing = "" if shutil.which("wrk") else "wrk is not on PATH"
        for figure in self.figures():
            figure.missing = missing
        self._can_load = not missing

    def figures(self) -> list[Figure]:
        """Return all rows."""
        cpus = [path.cpu for path in self._paths if path.cpu]
        return [*cpus[::-1], *(path.rate for path in self._paths[::-1])]

    def run(self) -> None:
        """Load each path once, for two seconds."""
        if not self._can_load:
            return
        for path in self._paths:
            before = processes.cpu_seconds(path.envoy) if path.envoy else 0.0
            count, rate = load(path.url)
            path.rate.add(rate)
            if path.cpu:
                used = processes.cpu_seconds(path.envoy) - before
                path.cpu.add(used / count * 1e6)

    def close(self) -> None:
        """End the static Envoy and delete the function."""
        self._static.terminate()
        self._static.wait(10)
        self._client.delete(self._id)


def load(url: str) -> tuple[int, float]:
    """Load a URL for some seconds; returns the number of requests and requests per second."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", done)
    if failed:
        raise BenchFailed(f"{url}: {failed.group(0)}")
    count = re.search(r"(\d+) requests in", done)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    if not count or not rate:
        raise BenchFailed(f"wrk said {done}")
    return int(count.group(1)), float(rate.group(1))


def envoy_below(pid: int) -> int:
    """Return the process id of the Envoy that a platform started."""
    below = processes.descendants(pid)
    found = [p for p in below if processes.command(p).partition(" ")[0].endswith("envoy")]
    if not found:
        raise BenchFailed("the platform has no Envoy among its processes")
    return found[-1]


def endpoint(data_dir: Path, function_id: str) -> tuple[str, int]:
    """Return where a function's script listens, as the gateway's Envoy has it."""

    class Admin(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(data_dir / "gateway" / "admin.sock"))

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        admin = Admin("admin")
        admin.request("GET", "/clusters?format=json")
        clusters: dict[str, Any] = json.loads(admin.getresponse().read())
        admin.close()
        for cluster in clusters["cluster_statuses"]:
            if cluster["name"] == function_id:
                address = cluster["host_statuses"][0]["address"]["socket_address"]
                return address["address"], address["port_value"]
        time.sleep(0.05)
    raise BenchFailed(f"Envoy has no cluster {function_id}")


def static_envoy(port: int, host: str, upstream: int) -> dict[str, Any]:
    """Return the smallest configuration that proxies one port to one upstream."""
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "function", "timeout": "0s"}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    target = {"socket_address": {"address": host, "port_value": upstream}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": address,
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "http",
                                    "typed_config": {
                                        "@type": f"{manager}.HttpConnectionManager",
                                        "stat_prefix": "static",
                                        "route_config": {
                                            "virtual_hosts": [
                                                {"name": "all", "domains": ["*"], "routes": [route]}
                                            ]
                                        },
                                        "http_filters": [
                                            {
                                                "name": "envoy.filters.http.router",
                                                "typed_config": {"@type": router},
                                            }
                                        ],
                                    },
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "function",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "function",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": target}}]}],
                    },
                }
            ],
        }
    }
