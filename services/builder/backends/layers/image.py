"""Configuration and manifest of an image, as documents: the same input, the same bytes.

https://github.com/opencontainers/image-spec/blob/main/config.md and manifest.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.registry.repository import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of
from services.builder.backends.layers.tarball import Layer

USER = "65532"
PORT = 8080
ENVIRONMENT_ROOT = "mayfly/env"
RUNTIME_ROOT = "mayfly/runtime"
FUNCTION_ROOT = "function"
BUILD_ANNOTATION = "dev.mayfly.build"
_EPOCH = "1970-01-01T00:00:00Z"
_BASE_DIGEST = "org.opencontainers.image.base.digest"
_BASE_NAME = "org.opencontainers.image.base.name"


@dataclass(frozen=True)
class Descriptor:
    """A blob as manifests name it."""

    digest: str
    size: int
    media_type: str = OCI_LAYER

    def json(self) -> dict[str, Any]:
        """It as manifests have it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Base:
    """A base image: where it is, its layers and its configuration."""

    name: str
    digest: str
    layers: Sequence[Descriptor]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """How a function is started. `environment`: whether there is one, at ENVIRONMENT_ROOT."""

    python: str
    entry: str
    is_handler: bool
    environment: bool


@dataclass(frozen=True)
class Image:
    """The documents of an image; `digest` is the manifest's."""

    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of(self.manifest)


def make(base: Base, layers: Sequence[Layer], program: Program, build: str) -> Image:
    """Return the image of `layers` on `base`."""
    config = _dump(_config(base.config, layers, program))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(digest_of(config), len(config), OCI_CONFIG).json(),
        "layers": [
            *(layer.json() for layer in base.layers),
            *(Descriptor(layer.digest, layer.size).json() for layer in layers),
        ],
        "annotations": {
            _BASE_NAME: base.name,
            _BASE_DIGEST: base.digest,
            BUILD_ANNOTATION: build,
        },
    }
    return Image(config, _dump(manifest))


def _config(base: Mapping[str, Any], layers: Sequence[Layer], program: Program) -> dict[str, Any]:
    inherited: dict[str, Any] = dict(base.get("config") or {})
    for name in ("Cmd", "Healthcheck", "OnBuild", "ArgsEscaped", "Volumes"):
        inherited.pop(name, None)
    python = f"/{ENVIRONMENT_ROOT}/bin/python" if program.environment else program.python
    entry = f"/{FUNCTION_ROOT}/{program.entry}"
    if program.is_handler:
        start = [python, f"/{RUNTIME_ROOT}/container.py"]
    else:
        start = [python, "-I", "-S", f"/{RUNTIME_ROOT}/script.py", entry]
    inherited |= {
        "User": USER,
        "WorkingDir": f"/{FUNCTION_ROOT}",
        "Entrypoint": start,
        "ExposedPorts": {f"{PORT}/tcp": {}},
        "Env": _environ(inherited.get("Env") or [], entry, program),
    }
    rootfs: dict[str, Any] = base["rootfs"]
    history: list[Any] = list(base.get("history") or [])
    history += [{"created": _EPOCH, "created_by": "mayfly"} for _ in layers]
    kept = {k: base[k] for k in ("architecture", "os", "os.version", "variant") if k in base}
    return kept | {
        "created": _EPOCH,
        "config": inherited,
        "rootfs": {
            "type": "layers",
            "diff_ids": [*rootfs["diff_ids"], *(layer.diff_id for layer in layers)],
        },
        "history": history,
    }


def _environ(base: Sequence[str], entry: str, program: Program) -> list[str]:
    found = {name: value for name, _, value in (pair.partition("=") for pair in base)}
    found |= {
        "PORT": str(PORT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The user has no entry in the image's passwd.
        "HOME": "/tmp",
    }
    if program.is_handler:
        found["MAYFLY_HANDLER"] = entry
    if program.environment:
        found["VIRTUAL_ENV"] = f"/{ENVIRONMENT_ROOT}"
        found["PATH"] = (
            f"/{ENVIRONMENT_ROOT}/bin:{found.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
        )
    return [f"{name}={value}" for name, value in found.items()]


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
