"""What a driver is told of its cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSettings:
    """installation: tells the objects of several Mayflys apart. namespace: where functions are;
    nothing else should be. runtime_class: "" is the cluster's default. image_pull_secrets: names
    of Secrets there. kubeconfig: a path; "" is the pod's service account, else KUBECONFIG.
    unschedulable_seconds: how long a pod may wait for room on a node.
    pull_seconds: how long until a container must have been started, its image pulled.
    """

    installation: str = "mayfly"
    namespace: str = "mayfly-functions"
    runtime_class: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    kubeconfig: str = ""
    unschedulable_seconds: float = 15.0
    pull_seconds: float = 180.0
