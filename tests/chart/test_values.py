"""Values: wrong ones are refused by name, and what is set is what services read."""

from __future__ import annotations

from typing import Any

import pytest

from services.builder.config import Settings as Builder
from services.deployer.config import Settings as Deployer
from services.gateway.config import Settings as Gateway
from services.janitor.config import Settings as Janitor
from tests.chart.conftest import NEEDED, Refused, Render, template

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"drivr": "knative"}, "drivr"),
    ({"driver": "process"}, "/driver"),
    ({"gateway": {"service": {"typ": "NodePort"}}}, "typ"),
    ({"gateway": {"service": {"port": 70000}}}, "/gateway/service/port"),
    ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
    ({"database": {"url": "mysql://x"}}, "/database/url"),
    ({"bucket": {"endpoint": "s3.example"}}, "/bucket/endpoint"),
    ({"publicUrl": "mayfly.example"}, "/publicUrl"),
    ({"functions": {"maxTtl": "forever"}}, "/functions/maxTtl"),
    ({"networkPolicy": {"extraBlockedCIDRs": ["10.0.0.1"]}}, "/networkPolicy/extraBlockedCIDRs"),
    ({"installation": "Not A Label"}, "/installation"),
    ({"buildBackends": "layers,docker"}, "/buildBackends"),
    ({"database": {"url": ""}}, "database.url"),
    ({"registry": {"address": ""}}, "registry.address"),
    ({"bucket": {"name": ""}}, "bucket.name"),
    ({"buildBackends": "bundle"}, "buildBackends"),
    ({"namespaces": {"functions": "sys"}}, "namespaces"),
    ({"gateway": {"service": {"nodePort": 30000}}}, "gateway.service.nodePort"),
    ({"baseImage": "docker.io/library/python:3.12-slim"}, "basePython"),
    ({"baseImage": "ghcr.io/astral-sh/uv:python3.12-bookworm-slim"}, "basePython"),
]


@pytest.mark.parametrize(("values", "name"), WRONG, ids=[name for _, name in WRONG])
def test_a_wrong_value_is_refused_by_its_name(
    render: Render, values: dict[str, Any], name: str
) -> None:
    with pytest.raises(Refused, match=name):
        template(NEEDED | values)


@pytest.mark.parametrize("driver", ["knative", "deployment"])
def test_every_variable_is_a_setting_of_its_service(render: Render, driver: str) -> None:
    settings = {"builder": Builder, "deployer": Deployer, "gateway": Gateway, "janitor": Janitor}
    common = {"MAYFLY_INSTALLATION", "MAYFLY_DATA_DIR"}
    addresses = {f"MAYFLY_{name.upper()}_ADDRESS" for name in settings}
    everything = {
        "driver": driver,
        "otlpEndpoint": "collector.example:4317",
        "functions": {
            **dict.fromkeys(
                [
                    "defaultTtl",
                    "maxTtl",
                    "idleStop",
                    "defaultTimeout",
                    "maxTimeout",
                    "startTimeout",
                    "imageLook",
                ],
                "90s",
            ),
            **dict.fromkeys(["maxInstances", "memoryBytes", "maxMemoryBytes"], 1000),
            "runtimeClassName": "gvisor",
        },
        "gateway": {"tls": {"existingSecret": "cert"}},
        "registry": NEEDED["registry"] | {"auth": {"username": "u", "password": "p"}},
        "index": {"variables": {"UV_DEFAULT_INDEX": "https://index.example/simple"}},
    }
    for each in render(**everything):
        name = each["metadata"]["name"].removeprefix("rel-mayfly-")
        if each["kind"] != "Deployment":
            continue
        (container,) = each["spec"]["template"]["spec"]["containers"]
        known = {f"MAYFLY_{field.upper()}" for field in settings[name].model_fields}
        given = {variable["name"] for variable in container["env"]}
        assert given - known - common - addresses == set(), name
        wanted = {"MAYFLY_DATABASE_URL"} if name != "gateway" else {"MAYFLY_TLS_CERTIFICATE"}
        assert wanted <= given, name
