"""Runs a script in a container: `python -I -S <folder of these files>/script.py [SCRIPT]`.

As with container.py, the folder needs nothing but this package's files. The script is a child: as
the first process of a container it would be deaf to SIGTERM (pid_namespaces(7)); somebody has to
see that it listens where it should, and has to let it finish what it is asked before it ends.
Settings are environment variables:

PORT (8080)                 where the script is to listen
MAYFLY_SCRIPT               the script's file, where there is no argument
MAYFLY_START_TIMEOUT (30)   seconds until it has to listen
MAYFLY_TIMEOUT (60)         seconds that it may go on after SIGTERM with what it was asked; 300 at
                            most
MAYFLY_REACHED_BY           "loopback": whoever connects is in the same pod. Else connections come
                            from outside, and those to a script that listens on loopback only are
                            carried on to it (relay.py)
MAYFLY_OPEN_FILES           how many files one process of the script may have open

What is wrong is a line on stderr, `mayfly-failure: {"reason": ..., "message": ..., "fix": ...}`.
SIGTERM is passed on once nobody is connected. Exit code: the script's, 128 + N after signal N.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    # Run as a file: the modules beside it are those of a package.
    __package__ = "mayfly_runtime"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[__package__] = _package

import signal
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from . import open_files

if TYPE_CHECKING:
    from .relay import Relay

FAILURE_PREFIX = "mayfly-failure: "
_ESTABLISHED, _LISTEN = "01", "0A"  # states of a socket in /proc/net/tcp
_LOOK_SECONDS = 0.05
_LONGEST_GRACE = 300.0
_MARGIN_SECONDS = 1.0
_DELIVERY_SECONDS = 2.0
_SIGNALS = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


class Settings(NamedTuple):
    """start_timeout, grace: seconds. from_outside: connections come from other pods."""

    entry: str
    port: int
    start_timeout: float
    grace: float
    from_outside: bool


def read_settings(environ: Mapping[str, str], arguments: list[str]) -> Settings:
    """Raises ValueError for a number that is none."""
    timeout = float(environ.get("MAYFLY_TIMEOUT") or 60)
    return Settings(
        entry=arguments[0] if arguments else environ.get("MAYFLY_SCRIPT") or "/function/script.py",
        port=int(environ.get("PORT") or 8080),
        start_timeout=float(environ.get("MAYFLY_START_TIMEOUT") or 30),
        grace=min(max(timeout, 1.0), _LONGEST_GRACE) + _MARGIN_SECONDS,
        from_outside=environ.get("MAYFLY_REACHED_BY") != "loopback",
    )


def sockets(state: str, inodes: set[str] | None = None) -> dict[int, set[str]]:
    """Return the local addresses of this pod's sockets in a state, by port.

    inodes: of which sockets; None: of all, those of other containers among them.
    """
    found: dict[int, set[str]] = {}
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(table) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue  # no such family here
        for line in lines:
            fields = line.split()
            if fields[3] != state or (inodes is not None and fields[9] not in inodes):
                continue
            address, port = fields[1].split(":")
            words = [address[at : at + 8] for at in range(0, len(address), 8)]
            packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
            found.setdefault(int(port, 16), set()).add(socket.inet_ntop(family, packed))
    return found


def own_inodes() -> set[str]:
    """Return the inodes of the sockets that processes of this container have (proc_pid_fd(5))."""
    found: set[str] = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            for name in os.listdir(f"/proc/{process}/fd"):
                kind, _, inode = os.readlink(f"/proc/{process}/fd/{name}").partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
        except OSError:
            continue  # it has ended, or has become somebody else's
    return found


def is_loopback(address: str) -> bool:
    """Whether only this pod's own processes reach it (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3)."""
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


def complaint(listening: Mapping[int, set[str]], port: int, seconds: float) -> dict[str, str]:
    """Return what is wrong where a script does not listen on its port."""
    if listening:
        ports = ", ".join(str(other) for other in sorted(listening))
        return {
            "reason": "SCRIPT_LISTENS_ELSEWHERE",
            "message": f"the script listens on port {ports} instead of {port}",
            "fix": f"listen on the port in PORT ({port}), or set `port` to {min(listening)}",
        }
    return {
        "reason": "SCRIPT_NEVER_LISTENED",
        "message": f"the script did not listen on port {port} within {seconds:g} s",
        "fix": f"start a server on the port in PORT ({port})",
    }


class Script:
    """A script that runs as a child."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._listen_by: float | None = time.monotonic() + settings.start_timeout
        self._stop_by: float | None = None
        self._told = False
        self._relay: Relay | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._child = os.fork()
        if not self._child:
            _become(settings.entry, environ, before)

    def run(self) -> int:
        """Wait until it has ended; return its exit code."""
        while True:
            watched = self._listen_by is not None or self._stop_by is not None
            taken = (
                signal.sigtimedwait(_SIGNALS, _LOOK_SECONDS)
                if watched
                else signal.sigwaitinfo(_SIGNALS)
            )
            if taken is not None and taken.si_signo == signal.SIGCHLD:
                code = self._reap()
                if code is not None:
                    if self._relay is not None:
                        self._relay.finish(_DELIVERY_SECONDS)
                    return code
            elif taken is not None:
                self._pass_on(taken.si_signo)
            if self._stop_by is not None:
                self._stop(self._stop_by)
            elif self._listen_by is not None:
                self._check(self._listen_by)

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGTERM and self._stop_by is None and not self._told:
            self._stop_by = time.monotonic() + self._settings.grace
        else:
            os.kill(self._child, number)

    def _reap(self) -> int | None:
        """Take leave of all that has ended; return the exit code where the script is among it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == self._child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if not pid:
                return None

    def _stop(self, deadline: float) -> None:
        """Pass SIGTERM on once nobody is connected."""
        if self._settings.port not in sockets(_ESTABLISHED) or time.monotonic() > deadline:
            os.kill(self._child, signal.SIGTERM)
            self._stop_by, self._listen_by, self._told = None, None, True

    def _check(self, deadline: float) -> None:
        listening = sockets(_LISTEN)
        own = listening.get(self._settings.port)
        if own:
            self._listen_by = None
            if self._settings.from_outside and all(map(is_loopback, own)):
                self._carry_on(min(own))
        elif time.monotonic() > deadline:
            self._listen_by = None
            # A sandbox's table may lack what listens on all families at once.
            if not _is_open(self._settings.port):
                own_sockets = sockets(_LISTEN, own_inodes())
                seconds = self._settings.start_timeout
                self._fail(complaint(own_sockets, self._settings.port, seconds))

    def _carry_on(self, address: str) -> None:
        from .relay import Relay, own_addresses

        port = self._settings.port
        try:
            self._relay = Relay(own_addresses(), port, address)
        except OSError as error:
            self._fail(
                {
                    "reason": "SCRIPT_LISTENS_ELSEWHERE",
                    "message": f"the script listens on port {port} of loopback only, "
                    f"and that cannot be carried on to it: {error}",
                    "fix": "listen on 0.0.0.0",
                }
            )
        else:
            self._relay.start()

    def _fail(self, wrong: Mapping[str, str]) -> None:
        import json

        sys.stderr.write(FAILURE_PREFIX + json.dumps(wrong) + "\n")
        sys.stderr.flush()
        os.kill(self._child, signal.SIGKILL)


def _become(entry: str, environ: Mapping[str, str], mask: set[int]) -> NoReturn:
    """Run a script in place of this process, which is a fork's child."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        open_files.limit(environ)
        os.execve(sys.executable, [sys.executable, entry], environ)
    except BaseException as error:  # noqa: BLE001 - nothing of the parent's may go on here
        os.write(2, f"the script cannot be started: {error}\n".encode())
        os._exit(127)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), 1.0).close()
    except OSError:
        return False
    return True


def main() -> NoReturn:
    """Run the script until it ends."""
    settings = read_settings(os.environ, sys.argv[1:])
    sys.exit(Script(settings, os.environ).run())


if __name__ == "__main__":
    main()
