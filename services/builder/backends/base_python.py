"""Which Python a base image has: said by its configuration, as Python's own images do."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from libs.registry import Repository

# What `uv` calls a machine, and what images do (https://go.dev/doc/install/source#environment).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
_VERSION = re.compile(r"PYTHON_VERSION=(3\.\d+)(\.\d+.*)?")


async def base_python(repository: Repository, reference: str, platform: str) -> str:
    """Return major and minor of the Python of an image, "" where it does not say.

    Example: "3.13". `reference` is a tag or a digest, `platform` such as "x86_64-manylinux_2_28".
    Raises `RegistryError`.
    """
    manifest = await repository.manifest(reference)
    if manifest is None:
        return ""
    content = manifest.content
    if "manifests" in content:
        digest = chosen(content, platform.partition("-")[0])
        manifest = await repository.manifest(digest) if digest else None
        if manifest is None:
            return ""
        content = manifest.content
    config = json.loads(await repository.blob(str(content["config"]["digest"])))
    return version_of(config)


def chosen(index: dict[str, Any], machine: str) -> str:
    """Return the digest of an index' image for a machine, "" where it has none."""
    wanted = _ARCHITECTURES.get(machine, machine)
    for entry in cast("list[dict[str, Any]]", index.get("manifests") or []):
        about = cast("dict[str, Any]", entry.get("platform") or {})
        if about.get("os") == "linux" and about.get("architecture") == wanted:
            return str(entry["digest"])
    return ""


def version_of(config: dict[str, Any]) -> str:
    """Return the version of Python that an image's configuration names. Example: "3.13"."""
    variables = cast("list[str]", (config.get("config") or {}).get("Env") or [])
    found = (_VERSION.fullmatch(variable) for variable in variables)
    return next((match[1] for match in found if match), "")
