"""What a Knative Service and its revisions say about themselves; pure."""

from __future__ import annotations

from typing import Any, cast

from libs.kube.kinds import Manifest
from services.deployer.drivers.cluster import failures, pods
from services.deployer.drivers.cluster.failures import Trouble


def routes_to(service: Manifest | None, revision: str) -> bool:
    """Whether all requests go to a revision, and it is ready."""
    if service is None:
        return False
    status = service.get("status", {})
    return (
        status.get("observedGeneration") == service["metadata"].get("generation")
        and pods.condition(service, "Ready").get("status") == "True"
        and status.get("latestReadyRevisionName") == revision
        and routed(service) == {revision}
    )


def is_latest(service: Manifest | None, revision: str) -> bool:
    """Whether Knative has seen that this revision is wanted."""
    if service is None:
        return False
    status = service.get("status", {})
    return (
        status.get("observedGeneration") == service["metadata"].get("generation")
        and status.get("latestCreatedRevisionName") == revision
    )


def routed(service: Manifest) -> set[str]:
    """The revisions that requests go to."""
    traffic = cast("list[dict[str, Any]]", service.get("status", {}).get("traffic") or [])
    return {each["revisionName"] for each in traffic if each.get("percent", 0) > 0}


def template_name(service: Manifest | None) -> str:
    """The revision that a Service asks for; "" where it names none."""
    template = (service or {}).get("spec", {}).get("template", {})
    return template.get("metadata", {}).get("name", "")


def revision_trouble(revision: Manifest | None) -> Trouble | None:
    """Why pods of a revision cannot be made; what pods themselves say is told better by them."""
    if revision is None:
        return None
    available = pods.condition(revision, "ResourcesAvailable")
    message = available.get("message", "")
    if available.get("status") == "False" and available.get("reason") == "FailedCreate":
        return failures.creation_trouble(message)
    ready = pods.condition(revision, "Ready")
    if ready.get("status") == "False" and ready.get("reason") == "ContainerMissing":
        why: str = ready.get("message", "")
        return Trouble(
            "IMAGE_PULL_FAILED",
            f"its image cannot be resolved: {why}",
            failures.pull_fix(why)
            or "name the image by digest, or let Knative's controller reach the registry",
        )
    return None


def service_trouble(service: Manifest | None) -> Trouble | None:
    """Why Knative does not take the Service as it is."""
    if service is None:
        return None
    for type_ in ("ConfigurationsReady", "Ready"):
        found = pods.condition(service, type_)
        if found.get("status") == "False" and found.get("reason") == "RevisionNameTaken":
            return Trouble(
                "INSTANCE_START_FAILED",
                f"Knative refuses the revision: {found.get('message', '')}",
                "delete the function's Knative revisions, then update it",
            )
    return None
