"""Settings of the builder, all from environment variables that begin with MAYFLY_.

uv reads the operator's own UV_* variables besides (UV_DEFAULT_INDEX, UV_INDEX, UV_HTTP_TIMEOUT),
those of proxies (HTTPS_PROXY, NO_PROXY) and of certificates (SSL_CERT_FILE).
"""

from __future__ import annotations

import os
import platform
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from libs.settings.addresses import (
    DatabaseUrl,
    OptionalHostAndPort,
    OptionalServiceAddress,
    OptionalUrl,
    ServiceAddress,
)
from libs.settings.durations import Duration
from libs.settings.logging import LogLevel

MIB = 1024 * 1024
# What each backend cannot do without; of names in one tuple, any.
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "environment": (),
    "layers": (("registry",), ("base_image",)),
    "kaniko": (("registry",), ("s3_bucket",), ("kaniko_image",)),
    "bundle": (("base_python", "base_image"),),
}
_REGISTRY = re.compile(r"[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


class Settings(BaseSettings):
    """What one builder replica needs to know."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_", extra="ignore")

    database_url: DatabaseUrl = Field(
        description="PostgreSQL, as postgresql://user@host/database. The builder uses the schema "
        "`builder` in it."
    )
    database_wait: Duration = Field(
        default=timedelta(seconds=10),
        ge=timedelta(0),
        description="Seconds that a PostgreSQL that does not answer is awaited at the start.",
    )
    data_dir: Path = Field(
        default=Path("/var/lib/mayfly"),
        description="Directory below which `builds/` is made, on a file system that the functions' "
        "driver sees. Replicas of one machine share it.",
    )
    builder_listen: ServiceAddress = Field(
        default="127.0.0.1:7001",
        description="Where BuildService and ReclaimerService listen: unix:/path or host:port.",
    )
    deployer_address: OptionalServiceAddress = Field(
        default="127.0.0.1:7002",
        description="Where spans go: the deployer keeps those of functions. Empty: nowhere.",
    )
    otlp_endpoint: OptionalHostAndPort = Field(
        default="", description="An OTLP/gRPC collector of one's own, host:port. Empty: none."
    )
    builder_metrics_listen: OptionalHostAndPort = Field(
        default="", description="Where Prometheus metrics are served, host:port. Empty: nowhere."
    )
    log_level: LogLevel = Field(default="INFO", description="The lowest level that is logged.")
    replica: str = Field(
        default="",
        description="This replica's name, the same after a restart: it takes its own builds up "
        "again at once. Empty: the host's name and the address it listens on.",
    )

    build_retention: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="Seconds that an environment stays after its last function has ended, and a "
        "build that nobody holds after its end. Long enough to try a change, short enough for "
        "disks.",
    )
    build_timeout: Duration = Field(
        default=timedelta(minutes=10),
        gt=timedelta(0),
        description="Seconds that a build may take from its start, waiting for its turn included.",
    )
    build_claim: Duration = Field(
        default=timedelta(seconds=15),
        ge=timedelta(seconds=1),
        description="Seconds that a replica may be silent before others take over its builds; it "
        "says so three times in this time.",
    )
    concurrent_builds: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Builds under way in this replica; more are queued for whoever has room.",
    )
    concurrent_installs: int = Field(
        default_factory=lambda: max(2, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="uv and Go processes that run at the same time in this replica, of each. They "
        "keep a core busy each; the default is one a core.",
    )
    max_source_bytes: int = Field(
        default=10 * MIB,
        ge=1,
        le=48 * MIB,
        description="Bytes of a source, an archive as it is sent.",
    )
    max_archive_bytes: int = Field(
        default=256 * MIB, ge=1, description="Bytes that an archive may unpack to."
    )
    max_archive_files: int = Field(
        default=10_000, ge=1, description="Files and directories that an archive may hold."
    )
    max_log_lines: int = Field(
        default=2000,
        ge=10,
        description="Lines of a build's log that are kept; later ones are counted.",
    )
    resolution_age: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(0),
        description="Seconds that the versions chosen for a set of requirements are used again "
        "before the index is asked anew.",
    )
    python_downloads: bool = Field(
        default=True,
        description="Whether uv may download a Python that a source requires and that is not here.",
    )
    build_sdists: bool = Field(
        default=False,
        description="Whether source distributions may be built. Their setup code then runs as the "
        "builder's user, outside any sandbox: only where sources are trusted.",
    )
    uv: str = Field(
        default="", description="Path of uv. Empty: the one installed with the platform."
    )
    go: str = Field(default="", description="Path of go. Empty: the one on PATH, if any.")

    installation: str = Field(
        default="mayfly",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Tells the objects of several Mayflys in one cluster apart, as a label.",
    )
    kubeconfig: str = Field(
        default="",
        description="Path of the file that says how the cluster is reached. Empty: the pod's "
        "service account, else KUBECONFIG, else ~/.kube/config.",
    )
    registry: str = Field(
        default="",
        description="Registry that images are pushed to, as host[:port][/prefix] and as nodes pull "
        "from it. All functions' images are in <registry>/functions.",
    )
    registry_insecure: bool = Field(
        default=False,
        description="Whether that registry is spoken to in plain HTTP. Only for one inside.",
    )
    registry_auth: str = Field(
        default="",
        description="Path of a Docker config.json with credentials. Empty: no credentials.",
    )
    base_image: str = Field(
        default="",
        description="Image with Python that functions' images are made upon (layers, kaniko). Its "
        "Python is the one that requirements are resolved for.",
    )
    base_python: str = Field(
        default="",
        pattern=r"^(3\.[0-9]{1,2})?$",
        description='Python of functions on a cluster, such as "3.13". Empty: what the base image '
        "says (PYTHON_VERSION in its environment); bundle has no base image and needs it.",
    )
    base_platform: str = Field(
        default_factory=lambda: f"{platform.machine()}-manylinux_2_28",
        pattern=r"^[a-z0-9_]+-[a-z0-9_-]+$",
        description="Platform that requirements are resolved for on a cluster, as uv names them. "
        "The default is this machine's with glibc 2.28 or newer, which common base images have.",
    )
    go_image: str = Field(
        default="", description="Image with the Go toolchain, in which kaniko compiles."
    )
    go_base_image: str = Field(
        default="",
        description="Small image that a compiled Go program is put into. Empty: an empty one.",
    )
    kaniko_image: str = Field(
        default="",
        description="Image of Kaniko's executor. The original is archived; forks are kept up.",
    )
    builds_namespace: str = Field(
        default="mayfly-builds", description="Namespace of the pods that build images."
    )
    build_pod_memory: str = Field(
        default="2Gi",
        description="Memory of such a pod, as Kubernetes writes it. Kaniko unpacks base images.",
    )
    build_pod_cpu: str = Field(
        default="1", description="CPUs of such a pod, as Kubernetes writes them."
    )
    index_secret: str = Field(
        default="",
        description="Secret of that namespace with UV_* and PIP_* variables, given to such pods "
        "only. Empty: the default index.",
    )
    s3_bucket: str = Field(
        default="", description="Bucket for what such pods build from, removed with the pod."
    )
    s3_endpoint_url: OptionalUrl = Field(
        default="", description="Address of an S3-compatible storage. Empty: AWS."
    )
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_path_style: bool = Field(
        default=True,
        description="Whether the bucket is in the path of addresses, as most storages besides AWS "
        "want it, or in the host's name.",
    )
    aws_access_key_id: str = Field(
        default="",
        validation_alias="AWS_ACCESS_KEY_ID",
        description="Key of the bucket (AWS_ACCESS_KEY_ID). Empty: as AWS' own tools find it.",
    )
    aws_secret_access_key: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="AWS_SECRET_ACCESS_KEY",
        description="Its secret (AWS_SECRET_ACCESS_KEY).",
    )
    build_pod_s3_access_key_id: str = Field(
        default="",
        description="Key of the bucket for the pods that build, whose sources' own steps can read "
        "it: one that may only read the bucket. Empty: the builder's.",
    )
    build_pod_s3_secret_access_key: SecretStr = Field(
        default=SecretStr(""), description="Its secret."
    )
    image_pull_secrets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Secrets of the builds' namespace with which Kaniko's image is pulled, "
        "separated by commas.",
    )
    # The last: what each backend needs is known by then.
    build_backends: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("environment",),
        validate_default=True,
        description="Who builds, separated by commas: the first that can build a source does. "
        "environment (one machine), layers and kaniko (images), bundle (no image).",
    )

    @field_validator("build_backends", "image_pull_secrets", mode="before")
    @classmethod
    def _is_a_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("build_backends")
    @classmethod
    def _is_complete(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in value:
            if name not in _NEEDS:
                raise ValueError(f"there is no backend {name!r}; there are {', '.join(_NEEDS)}")
            missing = [
                " or ".join(f"MAYFLY_{each.upper()}" for each in fields)
                for fields in _NEEDS[name]
                if not any(info.data.get(each) for each in fields)
            ]
            if missing:
                raise ValueError(f"{name} needs {', '.join(missing)}")
        if not value:
            raise ValueError("name at least one backend, such as environment")
        if len(set(value)) < len(value):
            raise ValueError("a backend is named twice")
        if "environment" in value and len(value) > 1:
            raise ValueError(
                "environment builds for one machine and the others for a cluster; name it alone"
            )
        return value

    @field_validator("registry")
    @classmethod
    def _is_a_registry(cls, value: str) -> str:
        if value and not _REGISTRY.fullmatch(value):
            raise ValueError(
                'must be host[:port][/prefix] in lower case without a scheme, such as "ghcr.io/me"'
            )
        return value

    @field_validator("kubeconfig", "registry_auth")
    @classmethod
    def _is_a_file(cls, value: str) -> str:
        if value and not os.path.isabs(value):
            raise ValueError("must be an absolute path")
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("uv", "go")
    @classmethod
    def _is_a_program(cls, value: str) -> str:
        if value and not (os.path.isabs(value) and os.access(value, os.X_OK)):
            raise ValueError("must be the absolute path of a program")
        return value

    @property
    def replica_name(self) -> str:
        """The name under which this replica claims builds."""
        return self.replica or f"{socket.gethostname()}:{self.builder_listen}"

    @property
    def functions_repository(self) -> str:
        """The repository of all functions' images; empty without a registry."""
        return f"{self.registry}/functions" if self.registry else ""

    @property
    def on_cluster(self) -> bool:
        """Whether what is built runs on a cluster."""
        return "environment" not in self.build_backends
