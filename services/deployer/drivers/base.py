"""The interface that every driver implements, and the values that pass through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["handler", "go_handler", "script", "image"]


@dataclass(frozen=True)
class Limits:
    """What one instance may use.

    memory_bytes: resident private memory of all its processes together, its /tmp included.
    processes: processes and threads at one time.
    open_files: open descriptors of one process.
    cpu_seconds: CPU time of one process before it is replaced (handlers) or ended (scripts).
    """

    memory_bytes: int
    processes: int
    open_files: int
    cpu_seconds: float


@dataclass(frozen=True)
class Workload:
    """One revision of a function, ready to run. Times are in seconds."""

    function_id: str
    uid: str
    revision: int
    kind: Kind
    artefact_dir: Path | None
    """The function's files, made by the builder; every file readable by all. None on a cluster."""
    entry: str
    """`handler.py`, `script.py` or the name of a binary, inside `artefact_dir`."""
    interpreter: Path | None
    """The real interpreter, not a shim and not a link of an environment. None for Go."""
    environment: Path | None
    """A virtual environment whose python is `bin/python`; None without requirements."""
    env: Mapping[str, str]
    port: int
    """The port that a script is expected to listen on."""
    health: str | None
    """A path that answers 2xx when a script is up; None: it is up when it listens."""
    timeout: float
    start_timeout: float
    idle_stop: float
    """How long an instance stays after its last connection. Must be longer than the time
    that the gateway keeps an unused connection to it."""
    concurrency: int
    min_instances: int
    max_instances: int
    url: str
    limits: Limits
    http2: bool = False
    """The function speaks HTTP/2 without TLS (gRPC), and nothing else."""
    image: str = ""
    """An OCI image by digest; empty where the artefact is no image."""
    bundle: bytes = b""
    """The function's files as tar.gz; empty where there is a directory or an image."""
    lock: str = ""
    """Resolved requirements with hashes, for a bundle."""
    python_version: str = ""
    """What `lock` was resolved for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a function is reached: `unix:/absolute/path` or `tcp:127.0.0.1:41234`.

    `others`: further addresses that serve the same. `host`: what `Host` has to be there, where an
    ingress tells functions apart by it.
    """

    address: str
    others: tuple[str, ...] = ()
    host: str = ""

    def __str__(self) -> str:
        """One line: the addresses, and `host=NAME` at the end where there is one."""
        named = (f"host={self.host}",) if self.host else ()
        return " ".join((self.address, *self.others, *named))

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read what `str` wrote; without an address it is empty."""
        words = text.split()
        host = ""
        if words and words[-1].startswith("host="):
            host = words.pop().removeprefix("host=")
        address, *others = words or [""]
        return cls(address, tuple(others), host)


@dataclass(frozen=True)
class Deployed:
    """A revision that answers. memory_bytes is what its instance has for itself."""

    instance: str
    memory_bytes: int
    seconds: float
    endpoint: Endpoint | None = None
    """Where it answers; None: at the socket that was reserved."""
    detail: str = ""
    """A few words for a person; empty: process and memory."""


@dataclass(frozen=True)
class Resource:
    """A thing found in the world: a process, socket, directory, mount or cgroup."""

    type: str
    id: str
    uid: str | None
    """The function it belongs to; None for what is shared between functions."""
    detail: str


def still_there(removed: Iterable[Resource]) -> str:
    """What a removal could not remove, with the reasons; empty where all is gone."""
    return "; ".join(f"{each.id}: {each.detail}" for each in removed if each.type == "error")


@dataclass
class DeployFailed(Exception):
    """A revision did not start. `reason` is a name of `ErrorReason` without its prefix."""

    reason: str
    message: str
    fix: str
    log_tail: list[str] = field(default_factory=list[str])
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class DriverUnavailable(Exception):
    """The call was not done, or it is not known whether it was; it may be repeated."""


@dataclass(frozen=True)
class InstanceStarted:
    uid: str
    instance: str
    revision: int
    seconds: float
    """From the request or call that wanted it to the moment it could answer."""


@dataclass(frozen=True)
class InstanceStopped:
    uid: str
    instance: str
    reason: str
    """idle, removed, replaced, timeout, memory, cpu, exited, killed or zygote-lost."""
    exit_code: int | None
    """Negative: the signal that ended it."""


@dataclass(frozen=True)
class BecameIdle:
    """The function's last instance was stopped because nobody used it."""

    uid: str


@dataclass(frozen=True)
class BecameActive:
    """The function's first instance is up again."""

    uid: str


@dataclass(frozen=True)
class LogLine:
    """One line a function wrote, or, with stream `platform`, one about it."""

    uid: str
    instance: str
    stream: Literal["stdout", "stderr", "platform"]
    time: float
    """Seconds since the epoch."""
    text: str


@dataclass(frozen=True)
class SupervisorLost:
    """What ran the functions is gone, with all of them: call `restore` with all live rows."""

    message: str


@dataclass(frozen=True)
class EndpointMoved:
    """What serves is reached elsewhere now; an empty address: nowhere, until it is woken."""

    uid: str
    endpoint: Endpoint


@dataclass(frozen=True)
class Reconciled:
    """Somebody else had changed or removed something of a function, and it is as it was again."""

    uid: str
    text: str


@dataclass(frozen=True)
class ArtefactLost:
    """What a function runs from is not there any more: build and deploy it again."""

    uid: str
    text: str


Notification = (
    InstanceStarted
    | InstanceStopped
    | BecameIdle
    | BecameActive
    | LogLine
    | SupervisorLost
    | EndpointMoved
    | Reconciled
    | ArtefactLost
)


Wanted = Callable[[str], Awaitable[Workload | None]]
"""What a function, by its uid, is to run now; None for one that has ended or is not ready.

Raises DriverUnavailable where that cannot be known at the moment."""


Early = Callable[[Endpoint], None]


class Driver(Protocol):
    """Runs functions. Every call may be repeated; the second has the outcome of the first.

    Every call may raise DriverUnavailable.
    """

    reserves: bool
    """Whether there is a socket before the deploy. Where not, `reserve` and `fail` have no socket
    to speak of: requests wait at the gateway, and `Deployed.endpoint` says where it answers."""
    shared: bool
    """Whether all replicas of the deployer drive the same world. Then one of them at a time reads
    `notifications`; one that begins to is told of everything that is the case."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> Endpoint:
        """Make the listening socket: from now on requests wait until an instance takes them.

        address_hint: the address that the function had before, to be had again.
        """
        ...

    async def deploy(self, workload: Workload, early: Early | None = None) -> Deployed:
        """Start a revision and return when it answers; an older one serves until then.

        early: may be called with the endpoint once an instance answers and only the way to it is
        still being made. An ingress says 404 there until it knows the way.

        Raises DeployFailed; an older revision then keeps serving.
        """
        ...

    async def restore(
        self, workloads: Sequence[Workload], endpoints: Mapping[str, Endpoint]
    ) -> None:
        """After a restart: sockets at their addresses (by uid); instances start on request."""
        ...

    async def settle(self, uid: str, revision: int) -> None:
        """The gateways have taken the endpoint of `revision`: older ones may end."""
        ...

    async def wake(self, uid: str) -> None:
        """Somebody waits for a function that is cold; EndpointMoved tells when it is not."""
        ...

    async def sleep(self, uid: str) -> None:
        """The gateways have taken that nothing of a function can be reached: instances may end."""
        ...

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        """Answer what waits with this status and JSON body, and stop listening.

        Nothing of the function runs afterwards.
        """
        ...

    async def touch(self, uid: str, in_flight: int) -> None:
        """The gateway's count of open requests, for kinds whose connections do not tell."""
        ...

    async def remove(self, uids: Sequence[str]) -> dict[str, list[Resource]]:
        """End functions at once; by uid, what was removed for each.

        A resource of type "error" is something that is still there, with the reason.
        """
        ...

    def notifications(self, wanted: Wanted) -> AsyncGenerator[Notification]:
        """What happens, without end. `wanted` is asked before something is put right again."""
        ...

    async def list_resources(self) -> list[Resource]:
        """What is really there, found by looking at the machine."""
        ...

    async def remove_resource(self, resource: Resource) -> None: ...


@runtime_checkable
class Scales(Driver, Protocol):
    """A driver that is told how many instances a function has; see services/deployer/scaler.py."""

    async def scale(self, uid: str, instances: int, keep: Sequence[str]) -> None:
        """Have so many instances, at least one. keep: addresses of those that stay.

        Where some are to end, the gateways have taken that only those of `keep` are reached.
        """
        ...
