"""What a revision of a function is in Knative's words; pure.

https://knative.dev/docs/serving/reference/serving-api/
"""

from __future__ import annotations

import math
from typing import Any

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import Workload
from services.deployer.drivers.cluster import container, names
from services.deployer.drivers.cluster.drift import digest, stamped
from services.deployer.drivers.cluster.settings import ClusterSettings

VISIBILITY = "networking.knative.dev/visibility"
_MAX_SECONDS = 600  # `max-revision-timeout-seconds` of Knative's own defaults
_STREAM_SECONDS = 300
_MAX_CONCURRENCY = 1000
_MARGIN_SECONDS = 5
_WINDOW_SECONDS = (6, 3600)
# The gateway sends what is answered too late away itself, with words of its own.
_DEADLINE_SECONDS = 30


def desired(workload: Workload, settings: ClusterSettings) -> list[Manifest]:
    """All objects of a revision, in the order in which they are applied."""
    secrets = container.env_secret(workload, settings)
    return [stamped(each) for each in [*secrets, knative_service(workload, settings)]]


def knative_service(workload: Workload, settings: ClusterSettings) -> Manifest:
    """The Service of a function as this revision wants it; reachable inside the cluster only."""
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": names.function_name(workload.uid),
            "namespace": settings.namespace,
            "labels": names.labels(workload, settings) | {VISIBILITY: "cluster-local"},
        },
        "spec": {"template": revision_template(workload, settings)},
    }


def revision_template(workload: Workload, settings: ClusterSettings) -> dict[str, Any]:
    """A revision under a name that differs where anything of it does: Knative refuses to change
    one, and the same generation of a function may be built anew to another image."""
    template: dict[str, Any] = {
        "metadata": {
            "labels": names.labels(workload, settings),
            "annotations": _annotations(workload, settings),
        },
        "spec": {
            "containerConcurrency": min(workload.concurrency, _MAX_CONCURRENCY),
            "timeoutSeconds": stream_seconds(workload),
            "responseStartTimeoutSeconds": _response_seconds(workload),
            **container.pod_fields(workload, settings),
            "containers": [_container(workload)],
        },
    }
    name = f"{names.revision_name(workload.uid, workload.revision)}-{digest(template)[:6]}"
    template["metadata"]["name"] = name
    return template


def stream_seconds(workload: Workload) -> int:
    """How long an answer may take from beginning to end, and an instance to finish what it has."""
    return min(_MAX_SECONDS, max(_STREAM_SECONDS, _response_seconds(workload)))


def _response_seconds(workload: Workload) -> int:
    # The gateway's own limit comes first.
    return min(_MAX_SECONDS, math.ceil(workload.timeout) + _MARGIN_SECONDS)


def _annotations(workload: Workload, settings: ClusterSettings) -> dict[str, str]:
    least, most = _WINDOW_SECONDS
    window = min(most, max(least, math.ceil(workload.idle_stop)))
    deadline = math.ceil(workload.start_timeout + settings.pull_seconds) + _DEADLINE_SECONDS
    annotations = {
        "autoscaling.knative.dev/min-scale": str(workload.min_instances),
        "autoscaling.knative.dev/max-scale": str(workload.max_instances),
        "autoscaling.knative.dev/window": f"{window}s",
        "serving.knative.dev/progress-deadline": f"{deadline}s",
    }
    if not workload.http2:
        # Go's server closes a body when its answer begins; a proxy in Go that has not seen the
        # body's end by then breaks the answer off. https://pkg.go.dev/net/http#ResponseController
        annotations["features.knative.dev/http-full-duplex"] = "Enabled"
    return annotations


def _container(workload: Workload) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": container.CONTAINER,
        "image": workload.image,
        "ports": [
            {
                "name": "h2c" if workload.http2 else "http1",
                "containerPort": workload.port,
                "protocol": "TCP",
            }
        ],
        # Its sidecar is what connects: a script may listen on loopback only.
        "env": [*container.env_list(workload), {"name": "MAYFLY_REACHED_BY", "value": "loopback"}],
        "resources": container.resources(workload),
        "securityContext": container.security_context(),
        "volumeMounts": [container.SCRATCH_MOUNT],
        # Once a second: a probe that is missed otherwise costs ten. All is said: what Knative
        # fills in, it takes for a change when the same is applied again.
        "readinessProbe": container.probe(workload, 0)
        | {
            "periodSeconds": 1,
            "timeoutSeconds": 1,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
    }
    if env_from := container.env_from(workload):
        made["envFrom"] = env_from
    if container.is_handler(workload):
        made["livenessProbe"] = container.probe(workload, 0, "/healthz") | {
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": 3,
        }
    return made
