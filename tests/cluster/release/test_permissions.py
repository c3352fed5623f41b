"""What each ServiceAccount of a release may do, asked of the cluster, against what it needs."""

from __future__ import annotations

import re

import pytest

from tests.cluster.release.parts import PARTS
from tests.cluster.release.site import Site

Rights = set[tuple[str, str]]

# What every account of the cluster may do: ask who it is and what it may do.
EVERYBODY = {
    "selfsubjectreviews.authentication.k8s.io",
    "selfsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
}


def rights(*entries: str) -> Rights:
    """Return verbs on resources, from "resource: verb verb"."""
    return {
        (resource, verb)
        for entry in entries
        for resource, _, verbs in [entry.partition(": ")]
        for verb in verbs.split()
    }


MAKES = "create patch get list watch delete"
DEPLOYER = {
    "knative": rights(
        f"services.serving.knative.dev: {MAKES}",
        "configurations.serving.knative.dev: list watch delete",
        "revisions.serving.knative.dev: list watch delete",
        "deployments.apps: patch list watch delete",
        "replicasets.apps: list watch delete",
        f"secrets: {MAKES}",
        "pods: list watch delete",
        "pods/log: get",
    ),
    "deployment": rights(
        f"deployments.apps: {MAKES}",
        "deployments.apps/scale: patch",
        "replicasets.apps: list watch delete",
        f"services: {MAKES}",
        f"configmaps: {MAKES}",
        f"secrets: {MAKES}",
        "pods: patch list watch delete",
        "pods/log: get",
    ),
}
BUILDER = rights(
    "pods: create list watch delete",
    "pods/log: get",
    "secrets: create get list delete",
)


def expected(site: Site) -> dict[tuple[str, str], Rights]:
    """Return what is needed, by account and namespace; nothing where nothing is named."""
    return {
        ("deployer", site.functions): DEPLOYER[site.driver],
        ("builder", site.builds): BUILDER,
    }


def allowed(site: Site, account: str, namespace: str) -> Rights:
    """Return what an account of the release's namespace may do in a namespace."""
    listed = site.looker.kubectl(
        *("auth", "can-i", "--list", "--no-headers", "-n", namespace),
        f"--as=system:serviceaccount:{account}",
    )
    found: Rights = set()
    for line in listed.splitlines():
        # NAME [non-resource URLs] [resource names] [verbs]
        resource = line.partition(" ")[0]
        urls, names, verbs = re.findall(r"\[([^\]]*)\]", line)
        if urls or resource in EVERYBODY or not resource:
            continue
        assert not names, line
        found |= {(resource, verb) for verb in verbs.split()}
    return found


def accounts(site: Site) -> dict[str, str]:
    """Return the accounts of the release's namespaces as "namespace:name", by what they are of."""
    found: dict[str, str] = {}
    for namespace in (site.namespace, site.functions, site.builds):
        for account in site.looker.list("serviceaccount", namespace):
            metadata = account["metadata"]
            part = metadata.get("labels", {}).get("app.kubernetes.io/component", "")
            name = part if namespace == site.namespace and part else f"{namespace}/default"
            assert name not in found, (name, metadata["name"])
            found[name] = f"{namespace}:{metadata['name']}"
    return found


def test_every_account_may_do_what_it_needs_and_no_more(site: Site) -> None:
    needed = expected(site)
    found = accounts(site)
    assert set(PARTS) <= set(found), found
    namespaces = (site.namespace, site.functions, site.builds, "default", "kube-system")
    wrong: dict[str, object] = {}
    for part, account in found.items():
        for namespace in namespaces:
            wanted = needed.get((part, namespace), set())
            has = allowed(site, account, namespace)
            if has != wanted:
                more, less = sorted(has - wanted), sorted(wanted - has)
                wrong[f"{part} in {namespace}"] = {"too much": more, "missing": less}
    assert wrong == {}


@pytest.mark.parametrize("part", ["builder", "deployer"])
def test_the_cluster_answers_the_same_when_it_is_asked_for_one(site: Site, part: str) -> None:
    """Neither may read what the release's own namespace keeps: the other services' Secrets."""
    account = accounts(site)[part]
    for namespace in (site.namespace, "kube-system"):
        answer = site.looker.kubectl(
            *("auth", "can-i", "get", "secrets", "-n", namespace),
            f"--as=system:serviceaccount:{account}",
            check=False,
        )
        assert answer.strip() == "no", (part, namespace, answer)


@pytest.mark.parametrize("part", ["gateway", "janitor"])
def test_who_needs_nothing_of_the_cluster_has_no_token(site: Site, part: str) -> None:
    for pod in site.parts.pods(part):
        volumes = pod["spec"].get("volumes", [])
        assert not [v for v in volumes if "projected" in v], (part, volumes)
