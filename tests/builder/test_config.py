"""Settings that do not fit together are refused by name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from libs.rpc.process import explain
from services.builder.config import Settings

KANIKO = {
    "MAYFLY_REGISTRY": "registry.test:5000/mayfly",
    "MAYFLY_S3_BUCKET": "builds",
    "MAYFLY_KANIKO_IMAGE": "kaniko",
}


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAYFLY_DATABASE_URL", "postgresql://localhost/mayfly")


def test_one_machine_is_the_default() -> None:
    settings = Settings()
    assert settings.build_backends == ("environment",)
    assert not settings.on_cluster


def test_a_list_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (KANIKO | {"MAYFLY_BASE_IMAGE": "python:3.13"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAYFLY_BUILD_BACKENDS", "layers, kaniko")
    settings = Settings()
    assert settings.build_backends == ("layers", "kaniko")
    assert settings.functions_repository == "registry.test:5000/mayfly/functions"


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"BUILD_BACKENDS": "nope"}, "BUILD_BACKENDS", "no backend 'nope'"),
        ({"BUILD_BACKENDS": ""}, "BUILD_BACKENDS", "at least one"),
        ({"BUILD_BACKENDS": "environment,environment"}, "BUILD_BACKENDS", "twice"),
        (
            {"BUILD_BACKENDS": "environment,bundle", "BASE_PYTHON": "3.13"},
            "BUILD_BACKENDS",
            "name it alone",
        ),
        ({"BUILD_BACKENDS": "layers"}, "BUILD_BACKENDS", "MAYFLY_REGISTRY, MAYFLY_BASE_IMAGE"),
        (
            {"BUILD_BACKENDS": "kaniko", "REGISTRY": "r.test"},
            "BUILD_BACKENDS",
            "MAYFLY_S3_BUCKET, MAYFLY_KANIKO_IMAGE",
        ),
        ({"BUILD_BACKENDS": "bundle"}, "BUILD_BACKENDS", "MAYFLY_BASE_PYTHON"),
        ({"REGISTRY": "https://r.test"}, "REGISTRY", "without a scheme"),
        ({"BASE_PYTHON": "3.13.1"}, "BASE_PYTHON", "pattern"),
        ({"S3_ENDPOINT_URL": "minio:9000"}, "S3_ENDPOINT_URL", "https://"),
        ({"REGISTRY_AUTH": "config.json"}, "REGISTRY_AUTH", "absolute"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str, said: str
) -> None:
    for key, value in given.items():
        monkeypatch.setenv(f"MAYFLY_{key}", value)
    with pytest.raises(ValidationError) as raised:
        Settings()
    lines = explain(raised.value, "MAYFLY_")
    assert any(line.startswith(f"MAYFLY_{name}: ") and said in line for line in lines), lines
