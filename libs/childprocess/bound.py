"""Become another program, as another user where asked, that the kernel ends with its parent.

Run as a file (`python -I -S bound.py SIGNAL PARENT UID GID PROGRAM ARGUMENT...`) and not as code
between fork and exec, because the parent has threads (gRPC's) whose locks a fork would copy. The
death signal is set after the change of user, which clears it (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns: execs, or exits with 127."""
    death_signal, parent, uid, gid = (int(argument) for argument in arguments[:4])
    command = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit(127)  # the parent was gone before the signal was set
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
