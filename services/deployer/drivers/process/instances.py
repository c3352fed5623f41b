"""One running instance, seen from outside: its process, descriptors and shared page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from runtimes.python import status as page
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.process import memory
from services.deployer.drivers.process.listeners import Listener
from services.deployer.drivers.process.logs import LogReader
from services.deployer.drivers.process.notify import NotificationServer, Surroundings
from services.deployer.drivers.process.sandbox import kernel
from services.deployer.drivers.process.zygotes import Child, receive

State = Literal["starting", "ready", "draining", "ended"]
Stream = Literal["stdout", "stderr", "platform"]

ZYGOTE_LOST = "zygote-lost"
"""Why an instance was stopped that ended with what it was forked from."""

_TAIL_LINES = 50
_MAX_BODY = 100 << 20
_HOLD_LOOKS = 50
_HOLD_LOOK = 0.001


@dataclass(frozen=True)
class Place:
    """What an instance is given by the supervisor.

    identity: the user it runs as; None where there is only one. scratch_bytes: size of its /tmp
    where it is not the usual one.
    """

    slot: int
    identity: int | None
    scratch_bytes: int | None
    public_ports: frozenset[int]


@dataclass(frozen=True)
class Hooks:
    """What an instance tells the function that it belongs to."""

    log: Callable[[Instance, Stream, str], None]
    ended: Callable[[Instance], None]
    draining: Callable[[Instance, str], None]


class Instance:
    """Made by `launch`; `ready` and `exited` are futures that others wait on."""

    def __init__(
        self, workload: Workload, listener: Listener, place: Place, name: str, hooks: Hooks
    ) -> None:
        self.workload = workload
        self.name = name
        self.place = place
        self.state: State = "starting"
        self.stop_reason: str | None = None
        self.started_at = time.monotonic()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.pid = -1
        self.last_used = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._hooks = hooks
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.heard = asyncio.Event()
        self._pidfd = -1
        self._control: socket.socket | None = None
        self._status: memoryview | None = None
        self._logs: list[LogReader] = []
        self._server: NotificationServer | None = None
        self._failure: DeployFailed | None = None

    # Starting

    def launch(self, child: Child) -> None:
        """Give it to a forked child. Raises OSError; `ready` and `exited` tell the rest."""
        workload = self.workload
        with contextlib.ExitStack() as stack:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(there.close)
            self._control = here
            here.setblocking(False)
            fds = [self._listener.fileno(), there.fileno()]
            readers: list[tuple[int, Stream]] = []
            for stream in ("stdout", "stderr"):
                read, write = os.pipe2(os.O_CLOEXEC)
                readers.append((read, stream))
                stack.callback(os.close, write)
                fds.append(write)
            for read, stream in readers:
                self._logs.append(LogReader(read, self._emit(stream), self.tail))
            fds.append(self._make_page(stack))
            trees = [str(workload.artefact_dir)]
            if workload.environment is not None:
                trees.append(str(workload.environment))
            for tree in trees:
                fd = kernel.read_only_tree(tree)
                stack.callback(os.close, fd)
                fds.append(fd)
            self._loop.add_reader(here, self._on_control)
            child.become(self._spec(), fds)
            self.pid, self._pidfd = child.pid, child.pidfd

    def _emit(self, stream: Stream) -> Callable[[str], None]:
        return lambda text: self._hooks.log(self, stream, text)

    def _make_page(self, stack: contextlib.ExitStack) -> int:
        size = page.page_size(self.workload.concurrency)
        fd = os.memfd_create("mayfly-status", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        self._status = memoryview(mmap.mmap(fd, size)).cast("Q")
        return fd

    def _spec(self) -> dict[str, Any]:
        workload, place = self.workload, self.place
        limits = workload.limits
        return {
            "uid": workload.uid,
            "instance": self.name,
            "function_id": workload.function_id,
            "kind": workload.kind,
            "entry": workload.entry,
            "argv": self._argv(),
            "env": environment_of(workload),
            "environment": workload.environment is not None,
            "hostname": workload.function_id[:63],
            "identity": place.identity,
            "scratch_bytes": place.scratch_bytes,
            "timeout": workload.timeout,
            "concurrency": workload.concurrency,
            "max_body": max_body(workload),
            "limits": {
                "memory_bytes": limits.memory_bytes,
                "processes": limits.processes,
                "open_files": limits.open_files,
                "cpu_seconds": limits.cpu_seconds,
            },
        }

    def _argv(self) -> list[str]:
        workload = self.workload
        if workload.kind != "script":
            return [workload.entry]
        python = "/env/bin/python" if workload.environment else str(workload.interpreter)
        return [python, f"/function/{workload.entry}"]

    def _on_control(self) -> None:
        if self._control is None:
            return
        try:
            data, fds = receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.remove_reader(self._control)
            return
        try:
            message = _as_object(json.loads(data))
        except ValueError:
            # User code shares this descriptor; what it may break is only its own instance.
            message = {}
        self._take(message, fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "notify" in message and fds and self._server is None:
            self._serve_calls(fds.pop(0))
        elif "ready" in message:
            self._become_ready()
        elif "failed" in message:
            self._failure = _failure(_as_object(message["failed"]))
        elif "draining" in message:
            self._hooks.draining(self, str(message["draining"])[:100])
        for fd in fds:
            os.close(fd)

    def _serve_calls(self, fd: int) -> None:
        is_script = self.workload.kind == "script"
        self._server = NotificationServer(
            fd,
            Surroundings(
                expected=self.workload.port if is_script else None,
                listener=self._listener.socket,
                listener_port=self._listener.port,
                public_ports=self.place.public_ports,
                on_listen=self._on_listen,
            ),
        )

    def _on_listen(self, port: int) -> None:
        self.heard.set()
        if (
            self.workload.kind == "script"
            and port == self.workload.port
            and self.workload.health is None
        ):
            self._become_ready()

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self.last_used = time.monotonic()
            self.ready.set_result(None)

    def declare_healthy(self) -> None:
        """Its health path has answered."""
        self._become_ready()

    # What it is doing

    @property
    def listening(self) -> frozenset[int]:
        """The ports it listens on, by the numbers it asked for."""
        return frozenset(self._server.ports.listening) if self._server else frozenset()

    @property
    def pidfd(self) -> int:
        return self._pidfd

    @property
    def failure(self) -> DeployFailed | None:
        return self._failure

    def _word(self, index: int) -> int:
        return self._status[index] if self._status is not None else 0

    @property
    def connections(self) -> int:
        return self._word(page.OPEN)

    @property
    def is_saturated(self) -> bool:
        return self.connections >= self.workload.concurrency

    def last_change(self) -> float:
        """When it last took or ended a connection (monotonic seconds)."""
        return max(self.last_used, self._word(page.CHANGED) / 1e9)

    def oldest_request(self) -> float | None:
        """When the request that has been with the handler for longest was given to it."""
        slots = range(page.SLOTS, page.SLOTS + self.workload.concurrency)
        started = [at for slot in slots if (at := self._word(slot))]
        return min(started) / 1e9 if started else None

    def requests_since(self, moment: float) -> int:
        """How many requests were given to the handler after `moment` and are still with it."""
        slots = range(page.SLOTS, page.SLOTS + self.workload.concurrency)
        return sum(1 for slot in slots if self._word(slot) / 1e9 > moment)

    # Ending

    def drain(self, reason: str) -> None:
        """Accept no more, finish, end."""
        if self.state in ("starting", "ready"):
            self.state = "draining"
            self.stop_reason = self.stop_reason or reason
            if self._status is not None:
                self._status[page.DRAIN] = page.DRAIN_ASKED
            self.signal(signal.SIGTERM)

    def kill(self, reason: str) -> None:
        """End it with everything it has started."""
        self.stop_reason = self.stop_reason or reason
        if self.state != "ended":
            self.state = "draining"
        self.signal(signal.SIGKILL)

    async def hold(self) -> list[int]:
        """Stop all that a script has started, its first process (our init) excepted."""
        pids = [pid for pid in memory.process_tree(self.pid) if pid != self.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for _ in range(_HOLD_LOOKS):
            if all(memory.is_stopped(pid) for pid in pids):
                break
            await asyncio.sleep(_HOLD_LOOK)
        return pids

    def let_go(self, held: list[int], number: signal.Signals | None) -> None:
        """Continue what `hold` has stopped; the program finds signal `number` waiting."""
        if number is not None and held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(held[0], number)
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def lose(self) -> None:
        """Nobody will say how it ended; its descriptor says when."""
        self.kill(ZYGOTE_LOST)
        if self._pidfd < 0:
            self.on_exit(-signal.SIGKILL)
        else:
            self._loop.add_reader(self._pidfd, self.on_exit, -signal.SIGKILL)

    def on_exit(self, code: int) -> None:
        """Its first process has ended, and with it all others."""
        if self.state == "ended":
            return
        self._release()
        self.state = "ended"
        self.exited.set_result(code)
        if not self.ready.done():
            self.ready.cancel()
        self._hooks.ended(self)

    def abandon(self) -> None:
        """It was never forked."""
        self._release()
        self.state = "ended"
        if not self.exited.done():
            self.exited.set_result(-1)
        if not self.ready.done():
            self.ready.cancel()

    def _release(self) -> None:
        if self._control is not None:
            while self._has_message():
                self._on_control()
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        for reader in self._logs:
            reader.close()
        if self._server is not None:
            self._server.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._status = None

    def _has_message(self) -> bool:
        if self._control is None:
            return False
        try:
            return bool(self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False


def _as_object(value: object) -> dict[str, Any]:
    """A JSON object; anything else is an empty one."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _failure(values: dict[str, Any]) -> DeployFailed:
    reason = str(values.get("reason", "INSTANCE_START_FAILED"))
    fixes = {
        "HANDLER_IMPORT_FAILED": "make the module importable: the traceback names the line",
        "HANDLER_MISSING": "define handler(event, ctx) at the top level",
    }
    if reason not in (*fixes, "INSTANCE_START_FAILED"):
        reason = "INSTANCE_START_FAILED"
    trace: object = values.get("trace")
    lines = [str(line) for line in cast(list[object], trace)] if isinstance(trace, list) else []
    fix = fixes.get(reason, "see the platform's logs; the limits may be too small")
    return DeployFailed(reason, str(values.get("message", ""))[:2000], fix, lines[:50])


def environment_of(workload: Workload) -> dict[str, str]:
    """The environment variables that a function sees."""
    path = "/usr/local/bin:/usr/bin:/bin"
    if workload.interpreter is not None:
        path = f"{workload.interpreter.parent}:{path}"
    values = {
        "HOME": "/tmp/home",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "USER": "function",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if workload.environment is not None:
        path = f"/env/bin:{path}"
        values["VIRTUAL_ENV"] = "/env"
    values["PATH"] = path
    own = {
        "MAYFLY_FUNCTION": workload.function_id,
        "MAYFLY_URL": workload.url,
        "MAYFLY_INSTANCE": workload.uid,
    }
    if workload.kind == "script":
        own["PORT"] = str(workload.port)
    if workload.kind == "go_handler":
        own |= {
            "MAYFLY_LISTEN_FD": "3",
            "MAYFLY_CONTROL_FD": "4",
            "MAYFLY_STATUS_FD": "5",
            "MAYFLY_TIMEOUT": repr(workload.timeout),
            "MAYFLY_CONCURRENCY": str(workload.concurrency),
            "MAYFLY_MAX_BODY": str(max_body(workload)),
            "GOMEMLIMIT": str(workload.limits.memory_bytes * 9 // 10),
        }
    return values | dict(workload.env) | own


def max_body(workload: Workload) -> int:
    """The largest request body in bytes: handlers hold it in memory."""
    return min(_MAX_BODY, workload.limits.memory_bytes // 4)


def find_interpreter(workload: Workload, default: str) -> str:
    """The zygote's interpreter. Binaries need none; they use the default zygote's sandbox."""
    if workload.interpreter is not None:
        return os.path.realpath(workload.interpreter)
    return os.path.realpath(shutil.which(default) or default)
