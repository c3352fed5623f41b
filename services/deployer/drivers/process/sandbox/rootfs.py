"""The file system that functions see, built from bind mounts in a mount namespace of its own."""

from __future__ import annotations

import os

from .kernel import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    move_mount,
    open_tree,
    pivot_root,
    read_only_tree,
    umount,
)

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_CONFIGURATION = (
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/shm": "/tmp/.shm",
    "/var/tmp": "/tmp",
    "/home/function": "/tmp/home",
}
_PASSWD = "root:x:0:0:root:/:/bin/false\nfunction:x:{uid}:{uid}:function:/tmp/home:/bin/sh\n"
_GROUP = "root:x:0:\nfunction:x:{uid}:\n"


def _covered(path: str, trees: list[str]) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in trees)


class RootBuilder:
    """Builds a root below `at`, a directory that only serves as a place to mount on."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._trees: list[str] = []
        mount("tmpfs", at, "tmpfs", MS_NOSUID, "mode=0755,size=1m")

    def _inside(self, path: str) -> str:
        return self._at + path

    def directory(self, path: str) -> None:
        os.makedirs(self._inside(path), mode=0o755, exist_ok=True)

    def file(self, path: str, text: str = "") -> None:
        os.makedirs(os.path.dirname(self._inside(path)), mode=0o755, exist_ok=True)
        with open(self._inside(path), "w", encoding="ascii") as file:
            file.write(text)

    def bind(self, source: str, target: str, devices: bool = False) -> None:
        """Show `source` at `target`, read-only."""
        inside = self._inside(target)
        if os.path.isdir(source):
            os.makedirs(inside, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(inside), mode=0o755, exist_ok=True)
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
        tree = open_tree(source) if devices else read_only_tree(source)
        try:
            move_mount(tree, inside)
        finally:
            os.close(tree)

    def system(self) -> None:
        for path in _SYSTEM:
            if os.path.islink(path):
                os.symlink(os.readlink(path), self._inside(path))
            elif os.path.isdir(path):
                self.bind(path, path)
                self._trees.append(path)
        for path in _CONFIGURATION:
            real = os.path.realpath(path)
            if os.path.exists(real):
                self.bind(real, path)
        for name in _DEVICES:
            self.bind("/dev/" + name, "/dev/" + name, devices=True)

    def interpreter(self, prefix: str) -> None:
        """The installation that an interpreter belongs to, at its own path."""
        if not _covered(prefix, self._trees):
            self.bind(prefix, prefix)
            self._trees.append(prefix)

    def mask(self, path: str) -> None:
        """Hide `path` where one of the trees shown holds it."""
        real = os.path.realpath(path)
        if _covered(real, self._trees):
            mount("tmpfs", self._inside(real), "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")

    def finish(self, uid: int) -> None:
        """Fill in the rest and make it the root of this process."""
        for path in ("/tmp", "/proc", "/function", "/env", "/mayfly", "/home", "/var", "/dev"):
            self.directory(path)
        for path, target in _LINKS.items():
            os.symlink(target, self._inside(path))
        self.file("/etc/passwd", _PASSWD.format(uid=uid))
        self.file("/etc/group", _GROUP.format(uid=uid))
        mount_proc(self._inside("/proc"))
        mount("", self._at, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
        os.chdir(self._at)
        pivot_root(".", ".")
        umount(".", MNT_DETACH)
        os.chdir("/")


def make_private() -> None:
    """What is mounted here from now on stays in this namespace."""
    mount("", "/", None, MS_REC | MS_PRIVATE)


def mount_proc(at: str) -> None:
    mount("proc", at, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def mount_scratch(at: str, size: int, inodes: int) -> None:
    """An empty directory that anybody may write to, of at most `size` bytes."""
    data = f"mode=1777,size={size},nr_inodes={inodes}"
    mount("tmpfs", at, "tmpfs", MS_NOSUID | MS_NODEV, data)


def resize_scratch(at: str, size: int) -> None:
    mount("", at, None, MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size}")
