"""Makes something unreachable for some namespaces' pods, by the packet filter of this machine.

The services behind it go on for everybody else, so that the cluster itself is not harmed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.cluster.conftest import Cluster

_LOOK_SECONDS = 0.25


def need_packet_filter(address: str) -> None:
    """Skip where the node is another machine, or its packet filter is not ours to change."""
    if os.geteuid() != 0 or not shutil.which("nft"):
        pytest.skip("outages are made with nft, as root")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        pytest.skip(f"{address} is not this machine's: outages are made on the node")


@contextmanager
def unreachable(
    cluster: Cluster, address: str, namespaces: list[str], *, selector: str = ""
) -> Generator[None]:
    """Refuse what pods of `namespaces` send to `address` ("host:port"), open connections too.

    Pods that come later are taken in within a fraction of a second.
    """
    host, _, port = address.rpartition(":")
    need_packet_filter(host)
    table = f"mayfly_test_{secrets.token_hex(4)}"
    rule = f"ip saddr @pods ip daddr {host} tcp dport {port} reject with tcp reset"
    _nft(
        f"table ip {table} {{\n"
        "  set pods { type ipv4_addr; }\n"
        # After the translation of Services' addresses, before everybody else's filters.
        f"  chain input {{ type filter hook input priority filter - 20; {rule}; }}\n"
        f"  chain forward {{ type filter hook forward priority filter - 20; {rule}; }}\n"
        "}\n"
    )
    blocked: set[str] = set()
    ended = threading.Event()

    def take_in() -> None:
        found = {ip for n in namespaces for ip in _addresses(cluster, n, selector)} - blocked
        if found:
            _nft(f"add element ip {table} pods {{ {', '.join(sorted(found))} }}")
            blocked.update(found)

    def follow() -> None:
        while not ended.wait(_LOOK_SECONDS):
            take_in()

    follower = threading.Thread(target=follow, daemon=True)
    try:
        take_in()
        follower.start()
        yield
    finally:
        ended.set()
        if follower.is_alive():
            follower.join()
        _nft(f"delete table ip {table}")


def _addresses(cluster: Cluster, namespace: str, selector: str) -> set[str]:
    found = cluster.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
    pods = json.loads(found)["items"]
    return {ip for pod in pods if (ip := pod.get("status", {}).get("podIP"))}


def _nft(rules: str) -> None:
    done = subprocess.run(
        ["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{rules}\n{done.stderr}"
