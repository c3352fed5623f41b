"""What the deployment driver is told, and where things are in its containers."""

from __future__ import annotations

from dataclasses import dataclass

from services.deployer.drivers.cluster.settings import ClusterSettings

FILES_DIR = "/mayfly"
FUNCTION_DIR = "/function"
ENVIRONMENT_DIR = "/env"
INSTALLER = "requirements"


@dataclass(frozen=True)
class Setup:
    """python_image: has `python` and `uv`. index_secret: a Secret with uv's variables, or ""."""

    cluster: ClusterSettings
    python_image: str
    index_secret: str = ""
