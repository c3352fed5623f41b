"""A process that has imported what handlers need and forks instances on request.

Talks to the supervisor over a SOCK_SEQPACKET pair, one JSON object a message:
  in   {"op": "start"}                     once, when the supervisor has become the parent
       {"op": "fork", "rehearse": bool}    make a child
  out  {"started": "3.11.2"}
       {"forked": number}                  with the child's own channel and a pidfd
       {"refused": why}
       {"exited": number, "code": n}       negative: ended by that signal

A child gets ready, then waits on its channel for one message: the specification of an instance
(see `instance`), with its descriptors.
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
from typing import Any, NoReturn

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


class Zygote:
    def __init__(self, channel: socket.socket, marker: str, scratch_bytes: int) -> None:
        self._channel = channel
        self._marker = marker
        self._scratch_bytes = scratch_bytes
        self._children: dict[int, int] = {}
        self._count = 0
        self._program = build_filter(kernel.MACHINE)
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._title = _Title()

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
        try:
            while True:
                for fd, _events in poll.poll():
                    if fd == wake_read:
                        os.read(wake_read, 4096)
                        self._reap()
                    elif not self._take_message():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return  # the supervisor went while it was told something

    def _take_message(self) -> bool:
        data, _fds = receive(self._channel)
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "start":
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            send(self._channel, {"started": sys.version.split()[0]}, [])
        elif message["op"] == "fork":
            self._hand_over(message["rehearse"])
        return True

    def _hand_over(self, rehearse: bool) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here, there:
            for end in (here, there):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            try:
                pid = self._fork(there, rehearse)
            except OSError as error:
                send(self._channel, {"refused": str(error)}, [])
                return
            self._count += 1
            self._children[pid] = self._count
            pidfd = kernel.pidfd_open(pid)
            send(self._channel, {"forked": self._count}, [here.fileno(), pidfd])
            os.close(pidfd)

    def _fork(self, channel: socket.socket, rehearse: bool) -> int:
        """A child in a pid namespace of its own. Raises OSError."""
        kernel.unshare(kernel.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._wait_for_function(channel, rehearse)
            return pid
        finally:
            kernel.setns(self._own_pids, kernel.CLONE_NEWPID)

    def _wait_for_function(self, channel: socket.socket, rehearse: bool) -> NoReturn:
        """The life of a child: get ready, wait, become one function's instance."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._title.set(f"mayfly-spare {self._marker}")
            problem = ""
            try:
                # The supervisor's end of the channel: only then does its end tell this child.
                kernel.close_except(channel.fileno())
                instance.prepare(self._scratch_bytes)
                if rehearse:
                    importlib.import_module("_mayfly_python.rehearsal").rehearse()
            except Exception as error:  # noqa: BLE001 - told to whoever wants to use this child
                problem = f"sandbox: {type(error).__name__}: {error}"
            data, fds = receive(channel)
            if not data:
                os._exit(0)
            spec = json.loads(data)
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
            number = self._children.pop(pid, None)
            if number is not None:
                code = os.waitstatus_to_exitcode(status)
                send(self._channel, {"exited": number, "code": code}, [])


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
