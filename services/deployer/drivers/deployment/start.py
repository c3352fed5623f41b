"""The first process of a container that runs a script, or that unpacks a bundle.

It is sent to the container; nothing imports it.

    python start.py script PORT SECONDS GRACE ENTRY     runs `python ENTRY`
    python start.py exec PROGRAM ARGUMENT...            becomes that program

With MAYFLY_BUNDLE it first unpacks that file into the current directory. A script is a child: as
the first process of a container it would be deaf to SIGTERM (pid_namespaces(7)); somebody has to
see that it listens where it should, and has to let it finish what it is asked before it ends. What
is wrong is a line on stderr, `mayfly-failure: {"reason": ..., "message": ..., "fix": ...}`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tarfile
import time

FAILURE_PREFIX = "mayfly-failure: "
_ESTABLISHED, _LISTEN = "01", "0A"  # states of a socket in /proc/net/tcp
_LOOK_SECONDS = 0.05
_MARGIN_SECONDS = 1.0
_SIGNALS = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def unpack(bundle: str) -> None:
    """Put the function's files where it works, which is the current directory."""
    with tarfile.open(bundle) as archive:
        archive.extractall(".", filter="data")


def sockets(state: str) -> dict[int, set[str]]:
    """Return the local addresses of this pod's sockets in a state, by port."""
    found: dict[int, set[str]] = {}
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(table) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue  # no such family here
        for line in lines:
            fields = line.split()
            if fields[3] != state:
                continue
            address, port = fields[1].split(":")
            words = [address[at : at + 8] for at in range(0, len(address), 8)]
            packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
            found.setdefault(int(port, 16), set()).add(socket.inet_ntop(family, packed))
    return found


def complaint(listening: dict[int, set[str]], port: int, seconds: float) -> dict[str, str] | None:
    """Return what is wrong with where the script listens; None where nothing is."""
    own = listening.get(port, set())
    if any(not address.startswith("127.") and address != "::1" for address in own):
        return None
    if own:
        return {
            "reason": "SCRIPT_LISTENS_ELSEWHERE",
            "message": f"the script listens on port {port} of loopback only",
            "fix": "listen on 0.0.0.0",
        }
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
    """A script that runs as a child. port: the one it is to listen on.

    seconds: until it has to. grace: how long it may go on with what it was asked before it ends.
    """

    def __init__(self, port: int, seconds: float, grace: float, entry: str) -> None:
        self._port = port
        self._seconds = seconds
        self._grace = grace
        self._listen_by: float | None = time.monotonic() + seconds
        self._stop_by: float | None = None
        self._told = False
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._child = os.posix_spawn(
            sys.executable, [sys.executable, entry], os.environ, setsigmask=()
        )

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
                    return code
            elif taken is not None:
                self._pass_on(taken.si_signo)
            if self._stop_by is not None:
                self._stop(self._stop_by)
            elif self._listen_by is not None:
                self._check(self._listen_by)

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGTERM and self._stop_by is None and not self._told:
            self._stop_by = time.monotonic() + self._grace - _MARGIN_SECONDS
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
        if self._port not in sockets(_ESTABLISHED) or time.monotonic() > deadline:
            os.kill(self._child, signal.SIGTERM)
            self._stop_by, self._listen_by, self._told = None, None, True

    def _check(self, deadline: float) -> None:
        wrong = complaint(sockets(_LISTEN), self._port, self._seconds)
        if wrong is None:
            self._listen_by = None
        elif time.monotonic() > deadline:
            sys.stderr.write(FAILURE_PREFIX + json.dumps(wrong) + "\n")
            sys.stderr.flush()
            os.kill(self._child, signal.SIGKILL)
            self._listen_by = None


def main(arguments: list[str]) -> int:
    """Do what the arguments say; see the module."""
    bundle = os.environ.pop("MAYFLY_BUNDLE", "")
    if bundle:
        unpack(bundle)
    what, *rest = arguments
    if what == "exec":
        os.execvp(rest[0], rest)
    port, seconds, grace, entry = rest
    return Script(int(port), float(seconds), float(grace), entry).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
