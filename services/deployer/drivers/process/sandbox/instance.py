"""What a forked child does to become an instance: sandbox first, then the function's code.

Two halves: `prepare` needs nothing of the function, so that it can be done ahead; `become`
takes one function's place, gives up all rights and never returns.
"""

from __future__ import annotations

import array
import fcntl
import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from . import kernel, rootfs

Spec = dict[str, Any]

# The descriptors that follow a spawn request, in this order; the environment is optional.
LISTENER, CONTROL, STDOUT, STDERR, STATUS, FUNCTION_TREE, ENVIRONMENT_TREE = range(7)

# Where a function's program finds its descriptors (see runtimes/go).
LISTEN_FD, CONTROL_FD, STATUS_FD = 3, 4, 5

_INODES = 16384
_STACK_ROOM = 192 << 20


def prepare(scratch_bytes: int) -> None:
    """Namespaces and file systems of its own. Needs the rights of the zygote."""
    os.setsid()
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
    rootfs.mount_scratch("/tmp", scratch_bytes, _INODES)
    os.umask(0)
    os.mkdir("/tmp/.shm", 0o1777)
    os.mkdir("/tmp/home", 0o777)
    os.umask(0o022)
    rootfs.mount_proc("/proc")


def become(spec: Spec, fds: list[int], program: bytes) -> NoReturn:
    """Run one function in this process. `program` is the system call filter."""
    control = socket.socket(fileno=fds[CONTROL])
    try:
        _confine(spec, fds, control, program)
        control = _settle(fds, control)
        if spec["kind"] == "handler":
            code = _run_handler(spec)
        elif spec["kind"] == "script":
            code = _run_script(spec)
        else:
            _run_binary(spec)
    except BaseException as error:  # noqa: BLE001 - told to the supervisor
        _report(control, error)
        code = 70  # EX_SOFTWARE
    finally:
        _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the reader is gone, or user code closed it


def _report(control: socket.socket, error: BaseException) -> None:
    failure = {
        "reason": "INSTANCE_START_FAILED",
        "message": f"{type(error).__name__}: {error}",
        "trace": traceback.format_exc().splitlines()[-12:],
    }
    try:
        control.send(json.dumps({"failed": failure}).encode())
    except OSError:
        os.write(2, json.dumps(failure).encode() + b"\n")


def _confine(spec: Spec, fds: list[int], control: socket.socket, program: bytes) -> None:
    kernel.sethostname(spec["hostname"])
    if spec["scratch_bytes"] is not None:
        rootfs.resize_scratch("/tmp", spec["scratch_bytes"])
    kernel.move_mount(fds[FUNCTION_TREE], "/function")
    if len(fds) > ENVIRONMENT_TREE:
        kernel.move_mount(fds[ENVIRONMENT_TREE], "/env")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(fds[STDOUT], 1)
    os.dup2(fds[STDERR], 2)
    _limit(spec)
    _give_up_rights(spec["identity"])
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    notifications = kernel.install_filter(program)
    socket_fds = array.array("i", [notifications])
    control.sendmsg(
        [b'{"notify":true}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, socket_fds.tobytes())]
    )
    os.chdir("/function")
    # What the zygote itself was given is among the names that are set here.
    os.environ.update(spec["env"])


def _settle(fds: list[int], control: socket.socket) -> socket.socket:
    """Move what is kept to its place and close everything else; the control socket anew."""
    keep = {LISTEN_FD: fds[LISTENER], CONTROL_FD: control.detach(), STATUS_FD: fds[STATUS]}
    above = {target: fcntl.fcntl(fd, fcntl.F_DUPFD, STATUS_FD + 1) for target, fd in keep.items()}
    for target, fd in above.items():
        os.dup2(fd, target, inheritable=False)
    kernel.close_range(STATUS_FD + 1)
    return socket.socket(fileno=CONTROL_FD)


def _limit(spec: Spec) -> None:
    limits = spec["limits"]
    memory = int(limits["memory_bytes"])
    # RLIMIT_DATA counts what is mapped, not what is used. A handler's own server maps little, so
    # it gets a MemoryError at its limit; foreign programs map stacks and arenas they never touch.
    data = memory if spec["kind"] == "handler" else 2 * memory + _STACK_ROOM
    cpu = max(1, int(limits["cpu_seconds"]))
    for kind, soft, hard in (
        (resource.RLIMIT_DATA, data, data),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CPU, cpu, cpu + 5),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 65536, 65536),
        (resource.RLIMIT_MSGQUEUE, 819200, 819200),
    ):
        resource.setrlimit(kind, (soft, hard))


def _give_up_rights(identity: int | None) -> None:
    """Become user `identity`, or, where there is only one user, nobody in a namespace."""
    if identity is not None:
        for fd in (1, 2):
            os.fchown(fd, identity, identity)
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
        return
    # The limit on processes counts for the new namespace alone (user_namespaces(7)).
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    kernel.drop_capabilities()


def _run_handler(spec: Spec) -> int:
    if spec["environment"]:
        _enter_environment()
    sys.path[:] = [p for p in sys.path if p != "/mayfly"]
    sys.path.insert(0, "/function")
    runtime = importlib.import_module("_mayfly_python.server")
    return int(
        runtime.run(
            runtime.Config(
                entry="/function/" + spec["entry"],
                function_id=spec["function_id"],
                timeout=spec["timeout"],
                concurrency=spec["concurrency"],
                max_body=spec["max_body"],
            ),
            LISTEN_FD,
            CONTROL_FD,
            STATUS_FD,
        )
    )


def _enter_environment() -> None:
    """What starting `/env/bin/python` does, in a process that was forked (PEP 405)."""
    import site

    sys.prefix = sys.exec_prefix = "/env"
    sys.executable = "/env/bin/python"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site.addsitedir(f"/env/lib/{version}/site-packages")


def _run_binary(spec: Spec) -> NoReturn:
    for fd in (LISTEN_FD, CONTROL_FD, STATUS_FD):
        os.set_inheritable(fd, True)
    _default_signals()
    os.execve("/function/" + spec["entry"], spec["argv"], spec["env"])


def _default_signals() -> None:
    """Python ignores these for itself; programs expect to find the defaults."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _run_script(spec: Spec) -> int:
    """Be process 1 of the instance: run the program, forward signals, reap what is left."""
    kernel.close_range(3)
    child = os.fork()
    if child == 0:
        try:
            _default_signals()
            os.setsid()
            os.execve(spec["argv"][0], spec["argv"], spec["env"])
        except OSError as error:
            os.write(2, f"cannot run {spec['argv'][0]}: {error}\n".encode())
        os._exit(127)

    def forward(number: int, _frame: Any) -> None:
        try:
            os.killpg(child, number)
        except ProcessLookupError:
            os.kill(1, 0)  # it ended a moment ago; the loop below is about to see it

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
