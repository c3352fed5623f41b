"""The objects of a build on the cluster."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from libs.blobs import Location
from services.builder.backends.kaniko.pods import (
    Place,
    Try,
    auth_for,
    host_of,
    number_of,
    pod,
    secret,
)

LOCATION = Location("bucket", "http://s3.example:9000", "eu-west-1", True, "key", "hidden")
PLACE = Place(
    image="kaniko:1",
    namespace="builds",
    registry="registry.example:5000/mayfly",
    installation="here",
    index_secret="index",
    auth=json.dumps({"auths": {"registry.example:5000": {"auth": "eA=="}, "other": {}}}),
)
ONE = Try("b1", "u1", 2, "contexts/b1-u1.tar.gz", 90, {"MOD": "mod"}, ("UV_INDEX",), ("ghcr.io/x",))


def container(**changes: Any) -> dict[str, Any]:
    """Return the container of a try's pod."""
    place = Place(**{**PLACE.__dict__, **changes})
    return pod(place, LOCATION, ONE)["spec"]["containers"][0]


def test_name_and_labels_follow_from_the_build() -> None:
    for made in (pod(PLACE, LOCATION, ONE), secret(PLACE, LOCATION, ONE)):
        assert made["metadata"]["name"] == "build-u1-2"
        assert made["metadata"]["namespace"] == "builds"
        labels = made["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "mayfly"
        assert labels["mayfly.dev/installation"] == "here"
        assert (labels["mayfly.dev/build"], labels["mayfly.dev/uid"]) == ("b1", "u1")
    assert (number_of("build-u1-2"), number_of("build-u1-x")) == (2, 0)


def test_it_runs_once_for_a_time_and_has_no_rights() -> None:
    spec = pod(PLACE, LOCATION, ONE)["spec"]
    assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 90)
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_what_kaniko_is_told() -> None:
    arguments = container()["args"]
    assert "--context=s3://bucket/contexts/b1-u1.tar.gz" in arguments
    assert "--destination=registry.example:5000/mayfly/functions:b1-u1" in arguments
    assert "--cache-repo=registry.example:5000/mayfly/cache" in arguments
    assert "--build-arg=MOD=mod" in arguments
    assert not any(argument.startswith("--insecure") for argument in arguments)
    assert "--insecure-registry=registry.example:5000" in container(insecure=True)["args"]


def test_no_manifest_but_the_secret_shows_a_credential() -> None:
    assert "hidden" not in json.dumps(pod(PLACE, LOCATION, ONE))
    assert "--build-arg=UV_INDEX" in container()["args"]
    assert container()["envFrom"] == [{"secretRef": {"name": "index"}}]
    data = secret(PLACE, LOCATION, ONE)["data"]
    assert base64.b64decode(data["AWS_SECRET_ACCESS_KEY"]) == b"hidden"


def test_the_bucket_is_reached_as_the_settings_say() -> None:
    plain = {v["name"]: v["value"] for v in container()["env"] if "value" in v}
    assert plain == {
        "AWS_REGION": "eu-west-1",
        "S3_ENDPOINT": "http://s3.example:9000",
        "S3_FORCE_PATH_STYLE": "true",
    }
    aws = pod(PLACE, Location("bucket", path_style=False), ONE)["spec"]["containers"][0]["env"]
    assert aws == [{"name": "AWS_REGION", "value": "us-east-1"}]


def test_only_the_registries_of_a_build_have_their_credentials_in_its_pod() -> None:
    data = secret(PLACE, LOCATION, ONE)["data"]
    config = json.loads(base64.b64decode(data["config.json"]))
    assert config == {"auths": {"registry.example:5000": {"auth": "eA=="}}}
    assert json.loads(auth_for("", ["x"])) == {"auths": {}}
    hub = json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": "eQ=="}}})
    assert json.loads(auth_for(hub, [host_of("python:3")])) == json.loads(hub)


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("python:3.13", "index.docker.io"),
        ("library/python:3.13", "index.docker.io"),
        ("ghcr.io/me/hello@sha256:0", "ghcr.io"),
        ("localhost/x", "localhost"),
        ("registry:5000/x", "registry:5000"),
    ],
)
def test_hosts_of_images(image: str, host: str) -> None:
    assert host_of(image) == host
