"""What holds for every object of the chart, with both drivers and with the demo."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart.conftest import CHART, Manifest, Render

DEMO = {"demo": True, "database": {}, "bucket": {}, "driver": "deployment"}
SHAPES: dict[str, dict[str, Any]] = {
    "knative": {"driver": "knative"},
    "deployment": {"driver": "deployment"},
    "demo": DEMO,
}
COMPONENTS = {"builder", "deployer", "janitor", "gateway"}
BLOCKED = {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}


@pytest.fixture(params=sorted(SHAPES))
def objects(render: Render, request: pytest.FixtureRequest) -> list[Manifest]:
    return render(**SHAPES[request.param])


def of_kind(objects: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    return next(each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)


def pods(objects: list[Manifest]) -> dict[str, dict[str, Any]]:
    """Pod specs by the name of what has them."""
    found = {}
    for each in of_kind(objects, "Deployment", "Job", "Pod"):
        spec = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        found[each["metadata"]["name"]] = spec
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_files_are_named_after_component_and_kind(render: Render) -> None:
    render()
    for file in (CHART / "templates").glob("*.yaml"):
        kinds = re.findall(r"^kind: (\w+)$", file.read_text(), re.MULTILINE)
        if not kinds:  # made by a definition of a .tpl
            kinds = ["ServiceAccount", "PodDisruptionBudget"]
        assert any(file.stem.endswith(f"-{kind.lower()}") for kind in kinds), file.name


def test_containers_have_no_rights(objects: list[Manifest]) -> None:
    assert {name.rpartition("-")[2] for name in pods(objects)} >= COMPONENTS
    for name, pod in pods(objects).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert security["runAsUser"] == 65532, name
            assert "memory" in container["resources"]["limits"], name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name


def test_only_builder_and_deployer_have_a_token(objects: list[Manifest]) -> None:
    with_token = {
        name for name, pod in pods(objects).items() if pod["automountServiceAccountToken"]
    }
    assert with_token == {"rel-mayfly-builder", "rel-mayfly-deployer"}
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_roles_have_no_wildcard_and_hold_in_one_namespace(objects: list[Manifest]) -> None:
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    roles = {role["metadata"]["namespace"]: role for role in of_kind(objects, "Role")}
    assert set(roles) == {"sys-functions", "sys-builds"}
    for role in roles.values():
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not any("*" in word for word in words), rule
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), rule
            assert "pods/exec" not in rule["resources"], rule


def test_the_driver_decides_what_the_deployer_may(render: Render) -> None:
    def may(driver: str, verb: str) -> set[str]:
        role = named(render(driver=driver), "Role", "rel-mayfly-deployer")
        return {
            f"{resource}.{group}"
            for rule in role["rules"]
            if verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    assert may("knative", "create") == {"services.serving.knative.dev", "secrets."}
    # What Knative makes of its Services is only ever removed, and taken from its owner for that.
    assert {"deployments.apps", "replicasets.apps"} <= may("knative", "delete")
    assert may("knative", "patch") - may("knative", "create") == {"deployments.apps"}
    assert "deployments.apps" in may("deployment", "create")
    for verb in ("list", "delete"):
        assert not any("knative" in each for each in may("deployment", verb))


def test_probes_ask_by_grpc_and_liveness_for_the_process_alone(objects: list[Manifest]) -> None:
    for component in COMPONENTS:
        (container,) = pods(objects)[f"rel-mayfly-{component}"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert "grpc" in container[probe], (component, probe)
        assert container["livenessProbe"]["grpc"]["service"] == "liveness"
        assert container["readinessProbe"]["grpc"]["service"] != "liveness"


def test_functions_reach_no_private_network(objects: list[Manifest]) -> None:
    for name in ("functions", "builds"):
        policy = named(objects, "NetworkPolicy", f"rel-mayfly-{name}")["spec"]
        assert policy["podSelector"] == {}
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        blocks = [
            peer["ipBlock"] for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer
        ]
        everywhere = [block for block in blocks if block["cidr"] == "0.0.0.0/0"]
        assert everywhere
        for block in everywhere:
            assert set(block["except"]) >= BLOCKED
        for rule in policy["egress"]:
            assert rule["to"], "a rule without `to` allows everything"


@pytest.mark.parametrize("internet", [True, False])
@pytest.mark.parametrize("names", [["example.com"], []])
def test_names_or_nothing_are_all_that_functions_reach_outside(
    render: Render, internet: bool, names: list[str]
) -> None:
    """Where one policy allows something, Cilium allows it, whatever the other says."""
    objects = render(
        networkPolicy={"functions": {"internet": internet}},
        ciliumNetworkPolicy={"enabled": True, "allowedFQDNs": names},
    )
    opened = {
        kind
        for kind in ("NetworkPolicy", "CiliumNetworkPolicy")
        if "0.0.0.0/0" in str(named(objects, kind, "rel-mayfly-functions")["spec"])
    }
    everything = {"NetworkPolicy", "CiliumNetworkPolicy"}
    assert opened == (everything if internet and not names else set())


def test_nothing_reaches_a_build(objects: list[Manifest]) -> None:
    assert named(objects, "NetworkPolicy", "rel-mayfly-builds")["spec"]["ingress"] == []


def test_namespaces_enforce_a_pod_security_standard(objects: list[Manifest]) -> None:
    label = "pod-security.kubernetes.io/enforce"
    levels = {
        n["metadata"]["name"]: n["metadata"]["labels"][label] for n in of_kind(objects, "Namespace")
    }
    assert levels == {"sys-functions": "restricted", "sys-builds": "baseline"}


def test_one_replica_has_no_disruption_budget(render: Render) -> None:
    objects = render(janitor={"replicas": 1})
    names = {each["metadata"]["name"] for each in of_kind(objects, "PodDisruptionBudget")}
    assert names == {f"rel-mayfly-{each}" for each in COMPONENTS - {"janitor"}}


def test_migrations_come_before_the_services(render: Render) -> None:
    job = named(render(), "Job", "rel-mayfly-migration")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert not of_kind(render(**DEMO), "Job")


def test_the_demo_alone_brings_a_database(render: Render) -> None:
    assert "rel-mayfly-demo-postgres" in pods(render(**DEMO))
    assert not any("demo" in name for name in pods(render()))


def test_registry_and_bucket_by_address_are_open_to_builds(render: Render) -> None:
    objects = render(
        registry={"address": "10.1.2.3:5000/x", "insecure": True},
        bucket={"name": "contexts", "endpoint": "http://10.1.2.4"},
    )
    policy = named(objects, "NetworkPolicy", "rel-mayfly-builds")["spec"]
    allowed = {
        (peer["ipBlock"]["cidr"], rule["ports"][0]["port"])
        for rule in policy["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer and "ports" in rule
    }
    assert allowed == {("10.1.2.3/32", 5000), ("10.1.2.4/32", 80)}
