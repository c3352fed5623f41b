"""The OpenAPI document: what it says follows from the contracts."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.gateway.envoy_config import PUBLIC_SERVICES
from services.gateway.openapi import document


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    raw = resources.files("mayfly.v1").joinpath("descriptors.pb").read_bytes()
    made = document(FileDescriptorSet.FromString(raw), PUBLIC_SERVICES, "http://x", "1.2")
    return json.loads(made)


def test_paths_are_the_http_rules(openapi: dict[str, Any]) -> None:
    assert openapi["openapi"] == "3.1.0"
    assert openapi["servers"] == [{"url": "http://x"}]
    found = {(verb, path) for path, verbs in openapi["paths"].items() for verb in verbs}
    assert {
        ("post", "/v1/functions"),
        ("get", "/v1/functions"),
        ("get", "/v1/functions/{function}"),
        ("patch", "/v1/functions/{function}"),
        ("delete", "/v1/functions/{function}"),
        ("post", "/v1/functions/{function}:renew"),
        ("get", "/v1/functions/{function}:watch"),
        ("get", "/v1/receipts/{receipt}"),
        ("get", "/v1/builds/{build}"),
        ("get", "/v1/runtimes"),
        ("post", "/v1/janitor:sweep"),
    } <= found
    assert not [path for _, path in found if "hold" in path.lower()]


def test_bodies_parameters_and_responses(openapi: dict[str, Any]) -> None:
    create = openapi["paths"]["/v1/functions"]["post"]
    assert _ref(create["requestBody"]) == "Function"
    assert _ref(create["responses"]["200"]) == "Function"
    assert _ref(create["responses"]["default"]) == "Status"
    assert [p["name"] for p in create["parameters"]] == ["function_id", "request_id"]
    assert create["summary"].startswith("Creates a function")
    watch = openapi["paths"]["/v1/functions/{function}:watch"]["get"]
    assert set(watch["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    listing = openapi["paths"]["/v1/functions"]["get"]
    assert {p["name"] for p in listing["parameters"]} >= {"page_size", "filter"}
    assert all(p["description"] for p in listing["parameters"])


def test_fields_have_types_and_comments(openapi: dict[str, Any]) -> None:
    function = openapi["components"]["schemas"]["Function"]["properties"]
    assert function["ttl"]["type"] == "string"
    assert function["expireTime"] == {
        "type": "string",
        "format": "date-time",
        "description": "When the lease ends.",
        "readOnly": True,
    }
    assert function["handler"]["writeOnly"]
    assert function["env"]["additionalProperties"] == {"type": "string"}
    assert function["archive"]["contentEncoding"] == "base64"
    assert all(f.get("description") for f in function.values())
    state = openapi["components"]["schemas"]["State"]
    assert "STATE_READY" in state["enum"]
    assert "`STATE_READY`: It answers." in state["description"]


def test_every_reference_is_there(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    refs = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(openapi)))
    assert refs <= set(schemas)
    assert "CreateFunctionResponse" not in schemas


def _ref(part: dict[str, Any]) -> str:
    return part["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
