"""Names and labels of a function's objects: of its uid, never of the id that a person chose."""

from __future__ import annotations

from collections.abc import Iterable

from libs.kube.kinds import Manifest
from services.deployer.drivers.base import Workload
from services.deployer.drivers.cluster.settings import ClusterSettings

MANAGED_BY = "app.kubernetes.io/managed-by"
INSTALLATION = "mayfly.dev/installation"
FUNCTION = "mayfly.dev/function"
UID = "mayfly.dev/uid"
REVISION = "mayfly.dev/revision"
DIGEST = "mayfly.dev/manifest"
"""An annotation: which manifest an object was made from."""


def function_name(uid: str) -> str:
    """Name of the objects that a function has one of."""
    return f"fn-{uid}"


def revision_name(uid: str, revision: int) -> str:
    """Name of the objects that each revision has one of."""
    return f"fn-{uid}-{revision:05d}"


def host_name(uid: str, settings: ClusterSettings) -> str:
    """The function's name in the cluster's DNS."""
    return f"{function_name(uid)}.{settings.namespace}.svc.{settings.cluster_domain}"


def labels(workload: Workload, settings: ClusterSettings) -> dict[str, str]:
    """Labels of every object of a revision, and of its pods."""
    return {
        MANAGED_BY: "mayfly",
        INSTALLATION: settings.installation,
        FUNCTION: workload.function_id,
        UID: workload.uid,
        REVISION: str(workload.revision),
    }


def selector(settings: ClusterSettings) -> str:
    """Selects all functions' objects of this Mayfly; builds' objects have no function."""
    return f"{INSTALLATION}={settings.installation},{FUNCTION},{UID}"


def uids_selector(settings: ClusterSettings, uids: Iterable[str]) -> str:
    """Selects the objects of some functions."""
    return f"{INSTALLATION}={settings.installation},{UID} in ({','.join(uids)})"


def uid_of(manifest: Manifest) -> str:
    """The function that an object belongs to; "" where it says none."""
    return manifest["metadata"].get("labels", {}).get(UID, "")


def revision_of(manifest: Manifest) -> int:
    """The revision that an object belongs to; 0 where it says none."""
    text = manifest["metadata"].get("labels", {}).get(REVISION, "")
    return int(text) if text.isdecimal() else 0
