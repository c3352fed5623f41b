"""What a pod of a function says: where it answers, how it is asked, what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import Endpoint
from services.deployer.drivers.cluster.container import CONTAINER
from services.deployer.drivers.cluster.pods import container_status, is_ending, is_ready, parse_time


@dataclass(frozen=True)
class Question:
    """How an instance is asked whether it answers: GET `path`, or a connection where that is ""."""

    address: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...]


def annotation(manifest: Manifest, name: str) -> str:
    """One of an object's annotations; "" where it has it not."""
    annotations = cast("dict[str, str]", manifest["metadata"].get("annotations") or {})
    return annotations.get(name, "")


def running_container(pod: Manifest) -> str:
    """The id of the function's container where it runs, else ""."""
    status = container_status(pod, CONTAINER)
    if is_ending(pod) or "running" not in status.get("state", {}):
        return ""
    return status.get("containerID", "")


def is_serving(pod: Manifest, answered: Mapping[str, str]) -> bool:
    """Whether it answers: by the kubelet's word, or because it was asked from here before that.

    answered: by pod, the container that has; forgotten once the kubelet has said so too, so that
    from then on its word alone counts.
    """
    container = running_container(pod)
    return is_ready(pod) or (bool(container) and answered.get(pod["metadata"]["name"]) == container)


def question_of(pod: Manifest) -> Question | None:
    """How a pod that runs is asked, by its own startup probe; None where it has no address."""
    address = pod.get("status", {}).get("podIP", "")
    probe = pod["spec"]["containers"][0].get("startupProbe", {})
    if not address or not probe:
        return None
    if "httpGet" not in probe:
        return Question(address, int(probe["tcpSocket"]["port"]), "", ())
    get = probe["httpGet"]
    named = cast("list[dict[str, str]]", get.get("httpHeaders") or [])
    headers = tuple((each["name"], each["value"]) for each in named)
    return Question(address, int(get["port"]), get["path"], headers)


def address_of(pod: Manifest) -> str:
    """Where requests go."""
    port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
    address = pod["status"]["podIP"]
    return f"tcp:[{address}]:{port}" if ":" in address else f"tcp:{address}:{port}"


def endpoint_of(pods: Iterable[Manifest]) -> Endpoint:
    """The endpoint of pods that serve; empty where there are none."""
    addresses = sorted(address_of(pod) for pod in pods)
    return Endpoint(addresses[0], tuple(addresses[1:])) if addresses else Endpoint("")


def age_of(pod: Manifest, now: datetime) -> float:
    """Seconds since it was made."""
    made = parse_time(pod["metadata"]["creationTimestamp"])
    return max(0.0, (now - made).total_seconds())
