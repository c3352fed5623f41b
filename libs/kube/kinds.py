"""The kinds of objects that Mayfly uses, and where the API server has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""An object as its JSON has it."""


@dataclass(frozen=True)
class Kind:
    """api_version: "v1" or "group/version". plural: its name in paths. name: its `kind`."""

    api_version: str
    plural: str
    name: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group; "" for the core."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of the collection, of one object or of its subresource.

        Without a namespace it is the collection of all namespaces.
        """
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        parts = [root]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


POD = Kind("v1", "pods", "Pod")
SERVICE = Kind("v1", "services", "Service")
CONFIG_MAP = Kind("v1", "configmaps", "ConfigMap")
SECRET = Kind("v1", "secrets", "Secret")
SERVICE_ACCOUNT = Kind("v1", "serviceaccounts", "ServiceAccount")
EVENT = Kind("v1", "events", "Event")
NAMESPACE = Kind("v1", "namespaces", "Namespace", namespaced=False)
NODE = Kind("v1", "nodes", "Node", namespaced=False)
RESOURCE_QUOTA = Kind("v1", "resourcequotas", "ResourceQuota")
DEPLOYMENT = Kind("apps/v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps/v1", "replicasets", "ReplicaSet")
JOB = Kind("batch/v1", "jobs", "Job")
ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy")
KNATIVE_SERVICE = Kind("serving.knative.dev/v1", "services", "Service")
KNATIVE_REVISION = Kind("serving.knative.dev/v1", "revisions", "Revision")
KNATIVE_CONFIGURATION = Kind("serving.knative.dev/v1", "configurations", "Configuration")
KNATIVE_ROUTE = Kind("serving.knative.dev/v1", "routes", "Route")

_ALL = (
    POD, SERVICE, CONFIG_MAP, SECRET, SERVICE_ACCOUNT, EVENT, NAMESPACE, NODE, RESOURCE_QUOTA,
    DEPLOYMENT, REPLICA_SET, JOB, ENDPOINT_SLICE, NETWORK_POLICY, KNATIVE_SERVICE,
    KNATIVE_REVISION, KNATIVE_CONFIGURATION, KNATIVE_ROUTE,
)  # fmt: skip
_BY_NAME = {(kind.api_version, kind.name): kind for kind in _ALL}


def kind_of(manifest: Manifest) -> Kind:
    """Return the kind of an object. Raises KeyError for one that Mayfly does not use."""
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]
