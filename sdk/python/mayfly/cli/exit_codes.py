"""How `mayfly` ends: one number a kind of failure, for scripts that tell them apart.

| code | meaning |
|---|---|
| 0 | it did what was asked |
| 1 | another failure; the message says which |
| 2 | wrong usage, or Mayfly refused a field of the request |
| 3 | there is no such function, build or receipt |
| 4 | the name is taken |
| 5 | the function could not be built |
| 6 | the function was built and could not be started |
| 7 | Mayfly cannot be reached, or a part of it is away |
| 8 | something is left: orphans in a sweep, or a receipt that is not verified |
| 9 | the function's lease has ended |
| 10 | a limit of this Mayfly is reached |
| 130 | interrupted (Ctrl-C) |
| 141 | whoever read the output has gone (a closed pipe) |
"""

from __future__ import annotations

from enum import IntEnum

from mayfly.errors import (
    AlreadyExists,
    FunctionEnded,
    FunctionFailed,
    InvalidRequest,
    MayflyError,
    NotFound,
    QuotaExceeded,
    Unavailable,
)


class ExitCode(IntEnum):
    """The exit status of `mayfly`."""

    OK = 0
    OTHER = 1
    USAGE = 2
    NOT_FOUND = 3
    ALREADY_EXISTS = 4
    BUILD_FAILED = 5
    DEPLOY_FAILED = 6
    UNAVAILABLE = 7
    RESIDUE = 8
    ENDED = 9
    QUOTA = 10
    INTERRUPTED = 130
    PIPE_CLOSED = 141


_BY_ERROR: tuple[tuple[type[MayflyError], ExitCode], ...] = (
    (InvalidRequest, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (AlreadyExists, ExitCode.ALREADY_EXISTS),
    (Unavailable, ExitCode.UNAVAILABLE),
    (FunctionEnded, ExitCode.ENDED),
    (QuotaExceeded, ExitCode.QUOTA),
)


def exit_code(error: MayflyError) -> ExitCode:
    """Return the exit status for an error."""
    if isinstance(error, FunctionFailed):
        built = error.stage not in ("check", "build")
        return ExitCode.DEPLOY_FAILED if built else ExitCode.BUILD_FAILED
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.OTHER)
