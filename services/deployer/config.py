"""Settings of the deployer."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from libs.rpc.addresses import host_and_port
from libs.settings.addresses import (
    DatabaseUrl,
    HostAndPort,
    OptionalHostAndPort,
    OptionalServiceAddress,
    OptionalUrl,
    ServiceAddress,
)
from libs.settings.durations import Duration
from libs.settings.logging import LogLevel

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Read from the environment, each with the prefix MAYFLY_."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_", frozen=True)

    database_url: DatabaseUrl
    """The PostgreSQL that keeps functions; the schema "deployer" is made in it."""
    database_wait: Duration = Field(timedelta(seconds=10), ge=timedelta(0))
    """How long a PostgreSQL that does not answer is awaited at the start."""
    data_dir: Path = Path("/var/lib/mayfly")
    """Where the process driver keeps its sockets and directories; one machine's own."""
    deployer_listen: ServiceAddress = "127.0.0.1:7002"
    """The gRPC address: "host:port" or "unix:/path"."""
    deployer_address: OptionalServiceAddress = ""
    """Where this service reaches itself to keep its own spans; empty: where it listens."""
    builder_address: ServiceAddress = "127.0.0.1:7001"
    """Where the builder is reached."""
    listen: HostAndPort = "127.0.0.1:8080"
    """The gateway's public host:port; functions may connect to it, to call each other."""
    public_url: OptionalUrl = ""
    """What functions' URLs begin with; empty: http://localhost and the port of `listen`."""
    otlp_endpoint: OptionalHostAndPort = ""
    """A collector that gets all spans too ("host:port"); empty: only the embedded sink does."""
    deployer_metrics_listen: OptionalHostAndPort = ""
    """Where Prometheus reads metrics ("host:port"); empty: nowhere."""
    log_level: LogLevel = "INFO"
    """The least important log lines that are written."""

    driver: Literal["process", "knative", "deployment"] = "process"
    """What runs functions: processes of this machine, or a Kubernetes cluster in one of two ways:
    Knative Services from images, or Deployments of plain scripts and handlers."""
    installation: str = Field("mayfly", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Tells the objects of several Mayflys in one cluster apart, as a label."""
    kubeconfig: str = ""
    """How the cluster is reached; empty: the pod's service account, else KUBECONFIG."""
    functions_namespace: str = "mayfly-functions"
    """Where functions' objects are made; nothing else should be in it."""
    runtime_class: str = ""
    """RuntimeClass of functions' pods, as "gvisor" or "kata"; empty: the cluster's default."""
    image_pull_secrets: Annotated[tuple[str, ...], NoDecode] = ()
    """Secrets in that namespace with which images are pulled, separated by commas."""
    cluster_domain: str = "cluster.local"
    """The DNS domain of the cluster's Services."""
    knative_ingress: HostAndPort = "kourier-internal.kourier-system.svc.cluster.local:80"
    """Where Knative's ingress takes requests from inside the cluster, "host:port"."""
    python_image: str = ""
    """Image with python and uv, for functions that run without an image of their own."""
    index_secret: str = ""
    """Secret in the functions' namespace with UV_* variables for installing requirements: given
    to the container that installs, never to user code. Empty: uv's own defaults."""

    target: str = Field("local", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Which machine or cluster this deployer drives; a function's row names its target."""
    replica: str = ""
    """This replica's name, the same after a restart: it takes its own claims up again at once.
    Empty: the host's name and the address it listens on."""

    default_ttl: Duration = Field(timedelta(minutes=10), gt=timedelta(0))
    """The lease of a function that asks for none: long enough to try something."""
    max_ttl: Duration = Field(timedelta(hours=24), gt=timedelta(0))
    """The longest lease. Ephemeral means that somebody has to renew it once a day."""
    default_timeout: Duration = Field(timedelta(seconds=60), gt=timedelta(0))
    """How long a request may take until its response starts, where the function does not say."""
    max_timeout: Duration = Field(timedelta(hours=1), gt=timedelta(0))
    """The longest such time."""
    max_source_bytes: int = Field(10 * MIB, gt=0)
    """Bytes of one source; larger ones belong into an archive's requirements or an image."""
    max_functions: int = Field(100_000, gt=0)
    """Functions that live at the same time."""
    max_env_bytes: int = Field(64 * 1024, gt=0)
    """Bytes of all environment variables of a function, well below the kernel's limit (ARG_MAX)."""
    max_instances: int = Field(64, gt=0)
    """The most instances that a function may ask for."""
    max_memory_bytes: int = Field(4096 * MIB, gt=0)
    """The most memory that an instance may ask for."""
    max_processes: int = Field(1024, gt=0)
    """The most processes and threads that an instance may ask for."""
    max_open_files: int = Field(65_536, gt=0)
    """The most open files that a process may ask for."""

    memory_bytes: int = Field(512 * MIB, gt=0)
    """Memory of an instance that asks for none: a web framework with its libraries fits."""
    processes: int = Field(64, gt=0)
    """Processes and threads of such an instance: a thread pool fits, a fork bomb does not."""
    open_files: int = Field(1024, gt=0)
    """Open files of a process of such an instance."""
    cpu_seconds: float = Field(3600.0, gt=0)
    """CPU time of a process of such an instance in its life."""
    concurrency: int = Field(16, gt=0)
    """Requests that one instance serves at a time, where the function does not say."""
    default_max_instances: int = Field(4, gt=0)
    """Instances at most, where the function does not say."""
    start_timeout: Duration = Field(timedelta(seconds=30), gt=timedelta(0))
    """How long a script may take until it listens."""
    idle_stop: Duration = Field(timedelta(seconds=60), gt=timedelta(0))
    """How long an unused instance stays; longer than the gateway keeps unused connections."""

    tombstone_retention: Duration = Field(timedelta(hours=24), ge=timedelta(0))
    """How long events, last logs and the trace of an ended function can be read."""
    claim: Duration = Field(timedelta(seconds=15), gt=timedelta(0))
    """How long a replica may be silent before others take over what it works on."""
    idle_grace: Duration = Field(timedelta(seconds=3), ge=timedelta(0))
    """After a start nothing ends for being idle until gateways had this time to report."""
    image_look: Duration = Field(timedelta(seconds=30), ge=timedelta(0))
    """How often it is looked whether functions' images are still in the registry (one listing of
    its tags); one that somebody has removed is built again. 0: never."""
    concurrent_steps: int = Field(64, gt=0)
    """Functions that are built or deployed at the same time by this replica."""
    domain: Annotated[tuple[str, ...], NoDecode] = ("localhost",)
    """Domains below which functions are reached too, separated by commas."""

    @field_validator("domain", "image_pull_secrets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _has_an_image(self) -> Settings:
        if self.driver == "deployment" and not self.python_image:
            raise ValueError("the driver deployment needs MAYFLY_PYTHON_IMAGE")
        return self

    @property
    def public_port(self) -> int:
        """The port that the gateway answers at."""
        return host_and_port(self.listen)[1]

    @property
    def url(self) -> str:
        """What functions' URLs begin with."""
        return self.public_url or f"http://localhost:{self.public_port}"

    @property
    def replica_name(self) -> str:
        """The name under which this replica claims work."""
        name = self.replica or f"{socket.gethostname()}:{self.deployer_listen}"
        return name.replace(" ", "_")
