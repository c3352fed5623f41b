"""System calls that Python does not offer, or only from 3.12 on. Failures are OSError."""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4

PR_SET_PDEATHSIG = 1
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_NAME = 15

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

# Numbers that are the same on every architecture (those added since Linux 5.1).
SYS_PIDFD_OPEN = 434
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_PIDFD_GETFD = 438
SYS_MOUNT_SETATTR = 442
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 4
RESOLVE_IN_ROOT = 0x10
O_PATH = 0o10000000

MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _arch(numbers: dict[str, int], what: str) -> int:
    try:
        return numbers[MACHINE]
    except KeyError:
        raise OSError(38, f"{what}: not known for {MACHINE}") from None


def _call(number: int, what: str, *args: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(_libc.syscall(ctypes.c_long(number), *converted), what)


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {target}",
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    _call(_arch(SYS_PIVOT_ROOT, "pivot_root"), "pivot_root", new.encode(), old.encode())


def open_tree(path: str, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _call(SYS_OPEN_TREE, f"open_tree {path}", AT_FDCWD, path.encode(), flags)


def mount_setattr(fd: int, attributes: int, recursive: bool = False) -> None:
    """Set `MOUNT_ATTR_*` on a mount given by descriptor."""
    args = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call(SYS_MOUNT_SETATTR, "mount_setattr", fd, b"", flags, args, len(args))


def move_mount(fd: int, target: str) -> None:
    """Attach a detached mount at `target`."""
    _call(
        SYS_MOVE_MOUNT,
        f"move_mount {target}",
        fd,
        b"",
        AT_FDCWD,
        target.encode(),
        MOVE_MOUNT_F_EMPTY_PATH,
    )


def read_only_tree(path: str, recursive: bool = False) -> int:
    """A detached, read-only copy of the mount at `path`, without devices and set-uid."""
    fd = open_tree(path, recursive)
    try:
        mount_setattr(fd, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_in_root(root_fd: int, path: bytes) -> int:
    """An O_PATH descriptor for `path` as a process whose root is `root_fd` would see it."""
    how = struct.pack("QQQ", O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    return _call(SYS_OPENAT2, "openat2", root_fd, path, how, len(how))


def prctl(option: int, argument: int = 0) -> int:
    zero = ctypes.c_ulong(0)
    return _check(
        _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero),
        f"prctl {option}",
    )


def set_name(name: str) -> None:
    """The name of this thread as `ps` shows it (15 bytes)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(ctypes.c_int(PR_SET_NAME), buffer, 0, 0, 0), "prctl name")


def pidfd_open(pid: int) -> int:
    return _call(SYS_PIDFD_OPEN, "pidfd_open", pid, 0)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    return _call(SYS_PIDFD_GETFD, "pidfd_getfd", pidfd, fd, 0)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    if first <= last:
        _call(SYS_CLOSE_RANGE, "close_range", first, last, 0)


def close_except(fd: int, first: int = 3) -> None:
    """Close every descriptor from `first` on but one."""
    close_range(first, fd - 1)
    close_range(fd + 1)


def sethostname(name: str) -> None:
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


def drop_bounding_set() -> None:
    """No process that starts from here on can gain a capability by an exec."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_READ, capability)
        except OSError:
            return
        prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    header = struct.pack("II", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_arch(SYS_CAPSET, "capset"), "capset", header, bytes(24))


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_filter(program: bytes) -> int:
    """Install a seccomp filter; returns the descriptor that its notifications are read from."""
    prog = _SockFprog(len(program) // 8, ctypes.cast(ctypes.c_char_p(program), ctypes.c_char_p))
    number = _arch(SYS_SECCOMP, "seccomp")
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    try:
        return _call(number, "seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(prog))
    except OSError as error:
        if error.errno != 22:  # WAIT_KILLABLE_RECV exists from Linux 5.19
            raise
        return _call(
            number,
            "seccomp",
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_NEW_LISTENER,
            ctypes.byref(prog),
        )


def copy_memory(address: int, data: bytes) -> None:
    """Write `data` over this process's own memory at `address`."""
    ctypes.memmove(address, data, len(data))


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Read another process's memory."""
    buffer = ctypes.create_string_buffer(length)
    local = _Iovec(ctypes.cast(buffer, ctypes.c_void_p), length)
    remote = _Iovec(address, length)
    _libc.process_vm_readv.restype = ctypes.c_ssize_t
    count = _check(
        _libc.process_vm_readv(
            ctypes.c_int(pid),
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.byref(remote),
            ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        ),
        "process_vm_readv",
    )
    return buffer.raw[:count]


def socket_call(name: str, fd: int, address: bytes) -> None:
    """bind or connect with a struct sockaddr as it is; EINPROGRESS is BlockingIOError."""
    function = {"bind": _libc.bind, "connect": _libc.connect}[name]
    length = ctypes.c_uint(len(address))
    _check(function(ctypes.c_int(fd), ctypes.c_char_p(address), length), name)


def send_to(fd: int, data: bytes, flags: int, address: bytes) -> int:
    """sendto with a struct sockaddr as it is; the number of bytes sent."""
    _libc.sendto.restype = ctypes.c_ssize_t
    return _check(
        _libc.sendto(
            ctypes.c_int(fd),
            ctypes.c_char_p(data),
            ctypes.c_size_t(len(data)),
            ctypes.c_int(flags),
            ctypes.c_char_p(address),
            ctypes.c_uint(len(address)),
        ),
        "sendto",
    )
