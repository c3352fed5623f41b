"""A process that has imported what handlers need and forks instances on request.

Talks to the supervisor over a SOCK_SEQPACKET pair, one JSON object a message:
  in   {"op": "start"}                      once, when the supervisor has become the parent
       {"op": "spawn", "spec": {...}}       with the descriptors named in `instance`
  out  {"started": "3.11.2"}
       {"spawned": instance}                with a pidfd
       {"refused": instance, "message": ...}
       {"exited": instance, "code": n}      negative: ended by that signal
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

from . import instance, kernel
from .seccomp import build_filter

# Imported once, shared by every instance. What a handler commonly needs and costs time.
_PRELOADED = [
    "abc",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "collections.abc",
    "concurrent.futures",
    "contextlib",
    "contextvars",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "email.message",
    "email.utils",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "http.client",
    "importlib.util",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "mimetypes",
    "operator",
    "pathlib",
    "pickle",
    "queue",
    "random",
    "re",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "site",
    "socket",
    "ssl",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "urllib.error",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "weakref",
    "zlib",
    "zoneinfo",
    "encodings.idna",
]

_MAX_MESSAGE = 1 << 18
_MAX_FDS = 16

# A child is kept ready, made when nothing else was asked for a moment; it takes the place of a
# function about twice as fast as a new one.
_SPARE_DELAY_MS = 15
_MAX_SPARES_LOST = 5


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; empty when the other end is gone."""
    fds = array.array("i")
    data, ancillary, _flags, _address = channel.recvmsg(
        _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
    )
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def send(channel: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    data = json.dumps(message).encode()
    if not fds:
        channel.send(data)
        return
    rights = array.array("i", fds).tobytes()
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


class _Spare(NamedTuple):
    """A child that has done all that needs no function, and waits for one."""

    pid: int
    channel: socket.socket


class Zygote:
    def __init__(self, channel: socket.socket, marker: str, scratch_bytes: int) -> None:
        self._channel = channel
        self._marker = marker
        self._scratch_bytes = scratch_bytes
        self._children: dict[int, str] = {}
        self._program = build_filter(kernel.MACHINE)
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._title = _Title()
        self._spare: _Spare | None = None
        self._spares_lost = 0

    def serve(self) -> None:
        """Until the supervisor is gone."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            wants_spare = self._spare is None and self._spares_lost < _MAX_SPARES_LOST
            ready = poll.poll(_SPARE_DELAY_MS if wants_spare else None)
            if not ready:
                self._make_ready()
            for fd, _events in ready:
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif not self._take_message():
                    return

    def _make_ready(self) -> None:
        try:
            self._spare = self._fork(rehearse=True)
        except OSError as error:
            self._spares_lost += 1
            sys.stderr.write(f"zygote: no child kept ready: {error}\n")

    def _take_message(self) -> bool:
        data, fds = receive(self._channel)
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "start":
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            send(self._channel, {"started": sys.version.split()[0]}, [])
        elif message["op"] == "spawn":
            self._spawn(message["spec"]["instance"], data, fds)
        return True

    def _spawn(self, name: str, data: bytes, fds: list[int]) -> None:
        try:
            spare, self._spare = self._spare, None
            if spare is None or not _forward(spare, data, fds):
                spare = self._fork(rehearse=False)
                if not _forward(spare, data, fds):
                    raise OSError("the forked child ended at once")
        except OSError as error:
            send(self._channel, {"refused": name, "message": str(error)}, [])
        else:
            self._children[spare.pid] = name
            self._spares_lost = 0
            pidfd = kernel.pidfd_open(spare.pid)
            send(self._channel, {"spawned": name}, [pidfd])
            os.close(pidfd)
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, rehearse: bool) -> _Spare:
        """A child in a pid namespace of its own. Raises OSError."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            try:
                kernel.unshare(kernel.CLONE_NEWPID)
                try:
                    pid = os.fork()
                    if pid == 0:
                        self._wait_for_function(there, rehearse)
                finally:
                    kernel.setns(self._own_pids, kernel.CLONE_NEWPID)
            except OSError:
                here.close()
                raise
        return _Spare(pid, here)

    def _wait_for_function(self, channel: socket.socket, rehearse: bool) -> NoReturn:
        """The life of a child: get ready, wait, become one function's instance."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._title.set(f"mayfly-spare {self._marker}")
            problem = ""
            try:
                instance.prepare(self._scratch_bytes)
                if rehearse:
                    importlib.import_module("_mayfly_python.rehearsal").rehearse()
            except Exception as error:  # noqa: BLE001 - told to whoever wants to use this child
                problem = f"sandbox: {type(error).__name__}: {error}"
            data, fds = receive(channel)
            if not data:
                os._exit(0)
            spec = json.loads(data)["spec"]
            if problem:
                failure = {"reason": "INSTANCE_START_FAILED", "message": problem}
                with socket.socket(fileno=fds[instance.CONTROL]) as control:
                    control.send(json.dumps({"failed": failure}).encode())
                os._exit(71)  # EX_OSERR
            self._title.set(f"mayfly-function {spec['uid']} {spec['instance']} {self._marker}")
            kernel.set_name("mayfly-function")
            instance.become(spec, fds, self._program)
        finally:
            os._exit(70)  # EX_SOFTWARE; the child never returns into the zygote

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._children.pop(pid, None)
            if name is not None:
                code = os.waitstatus_to_exitcode(status)
                send(self._channel, {"exited": name, "code": code}, [])
            elif self._spare is not None and self._spare.pid == pid:
                self._spare.channel.close()
                self._spare = None
                self._spares_lost += 1


def _forward(spare: _Spare, data: bytes, fds: list[int]) -> bool:
    """Hand a spawn request to a waiting child; False when it has ended."""
    rights = array.array("i", fds).tobytes()
    try:
        with spare.channel:
            spare.channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except (BrokenPipeError, ConnectionError):
        return False
    return True


class _Title:
    """This process's command line as others see it, which is its own memory."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        self._start = int(fields[45])  # arg_start, field 48 of proc_pid_stat(5)
        with open("/proc/self/cmdline", "rb") as file:
            self._room = len(file.read())

    def set(self, text: str) -> None:
        raw = text.encode().replace(b" ", b"\0")[: self._room - 1]
        kernel.copy_memory(self._start, raw.ljust(self._room, b"\0"))


def main(arguments: list[str]) -> None:
    """Arguments: the socket's descriptor, the data directory's marker, the size of a /tmp."""
    channel = socket.socket(fileno=int(arguments[0]))
    for name in (*_PRELOADED, "_mayfly_python.rehearsal"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            if name.startswith("_mayfly"):
                raise
            # An interpreter built without it: handlers that need it fail by themselves.
            sys.stderr.write(f"zygote: {name} is missing: {error}\n")
    kernel.drop_bounding_set()
    kernel.set_name("mayfly-zygote")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    zygote = Zygote(channel, arguments[1], int(arguments[2]))
    gc.collect()
    gc.freeze()
    zygote.serve()
