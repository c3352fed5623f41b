"""Documents of images, and which Python a base has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.builder.backends.layers import image, interpreter
from services.builder.backends.layers.image import Base, Descriptor, Program
from services.builder.backends.layers.tarball import Layer

BASE = Base(
    "reg/base:1",
    "sha256:ba",
    [Descriptor("sha256:b1", 10)],
    {
        "architecture": "arm64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/bin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["python3"],
            "Volumes": {"/data": {}},
            "Labels": {"kept": "yes"},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:d1"]},
        "history": [{"created_by": "base"}],
    },
)
LAYERS = [Layer("sha256:r", "sha256:rd", 5), Layer("sha256:s", "sha256:sd", 6)]


def made(**given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    program = {"python": "/usr/bin/python3.13", "entry": "handler.py", "is_handler": True}
    done = image.make(BASE, LAYERS, Program(**({"environment": False} | program | given)), "b1")
    return json.loads(done.config), json.loads(done.manifest)


def test_a_handler_is_served_by_the_runtime_as_an_ordinary_user() -> None:
    config, manifest = made()
    settings = config["config"]
    assert settings["User"] == "65532"
    assert settings["Entrypoint"] == ["/usr/bin/python3.13", "/mayfly/runtime/container.py"]
    assert "Cmd" not in settings
    assert "Volumes" not in settings
    assert settings["Labels"] == {"kept": "yes"}
    environ = interpreter.environ_of(settings["Env"])
    assert environ["PORT"] == "8080"
    assert environ["MAYFLY_HANDLER"] == "/function/handler.py"
    assert environ["LANG"] == "C.UTF-8"
    assert (config["architecture"], config["created"]) == ("arm64", "1970-01-01T00:00:00Z")
    assert config["rootfs"]["diff_ids"] == ["sha256:d1", "sha256:rd", "sha256:sd"]
    assert len(config["history"]) == 3
    assert [each["digest"] for each in manifest["layers"]] == ["sha256:b1", "sha256:r", "sha256:s"]
    assert manifest["annotations"]["dev.mayfly.build"] == "b1"


def test_a_script_is_run_by_its_environments_python() -> None:
    config, _ = made(is_handler=False, entry="main.py", environment=True)
    settings = config["config"]
    assert settings["Entrypoint"] == [
        *("/mayfly/env/bin/python", "-I", "-S"),
        *("/mayfly/runtime/script.py", "/function/main.py"),
    ]
    environ = interpreter.environ_of(settings["Env"])
    assert environ["PATH"] == "/mayfly/env/bin:/usr/local/bin:/bin"
    assert "MAYFLY_HANDLER" not in environ


def test_the_same_input_is_the_same_image_and_another_build_another() -> None:
    program = Program("/usr/bin/python3.13", "handler.py", True, False)
    one = image.make(BASE, LAYERS, program, "b1")
    assert image.make(BASE, LAYERS, program, "b1").digest == one.digest
    # So that two builds' images never go with each other.
    assert image.make(BASE, LAYERS, program, "b2").digest != one.digest


@pytest.mark.parametrize(
    ("programs", "environ", "path", "version"),
    [
        (
            {"usr/local/bin/python3": "python3.13", "usr/local/bin/python3.13": ""},
            {},
            "/usr/local/bin/python3.13",
            "3.13",
        ),
        (
            {
                "usr/local/bin/python3": "python3.9",
                "usr/local/bin/python3.9": "",
                "usr/local/bin/python3.12": "",
            },
            {"PYTHON_VERSION": "3.9.20"},
            "/usr/local/bin/python3.9",
            "3.9.20",
        ),
        (
            {"usr/bin/python3.9": "", "usr/bin/python3.11": "", "opt/x/bin/python3.13": ""},
            {"PATH": "/bin:/usr/bin", "PYTHON_VERSION": "3.13.1"},
            "/usr/bin/python3.11",
            "3.11",
        ),
        (
            {"opt/x/bin/python3.13": "", "usr/bin/python3.11": ""},
            {"PATH": "/opt/x/bin:/usr/bin"},
            "/opt/x/bin/python3.13",
            "3.13",
        ),
    ],
)
def test_the_python_is_the_one_that_python3_means(
    programs: dict[str, str], environ: dict[str, str], path: str, version: str
) -> None:
    found = interpreter.choose(programs, environ)
    assert found == interpreter.ImagePython(path, version)


def test_an_image_without_python_has_none() -> None:
    assert interpreter.choose({"usr/bin/python2.7": ""}, {}) is None
