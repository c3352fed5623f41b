"""Runs a handler in a container: `python <folder of these files>/container.py`.

The folder needs nothing but this package's files, flat, as a layer of an image or a mounted
ConfigMap has them; its name and place do not matter. `python -m runtimes.python.container` is the
same. Settings are environment variables:

PORT (8080)                 listen on this port, on all addresses
MAYFLY_HANDLER              the handler's file, absolute (default: /function/handler.py)
MAYFLY_FUNCTION             the function's id
MAYFLY_URL                  its address; for the handler's own use
MAYFLY_TIMEOUT (60)         seconds until a request's response begins
MAYFLY_CONCURRENCY (1)      requests that the handler has at a time
MAYFLY_MAX_BODY (33554432)  bytes of a request's body
MAYFLY_OPEN_FILES           how many files the process may have open; optional
MAYFLY_SITE                 directories of packages, joined with ":"; optional

A handler that cannot be used: its traceback on stderr, then a line `mayfly-failure: {"reason":
..., "message": ...}`, and exit code 1. SIGTERM: exit code 0 when all has been answered.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    # Run as a file: its folder must not be where user code's imports are looked for.
    import importlib.util

    _folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _folder]
    __package__ = "mayfly_runtime"
    _spec = importlib.util.spec_from_file_location(
        __package__,
        os.path.join(_folder, "__init__.py"),
        submodule_search_locations=[_folder],
    )
    if _spec is None or _spec.loader is None:
        raise ImportError(f"{_folder} does not hold the runtime's files")
    _package = importlib.util.module_from_spec(_spec)
    sys.modules[__package__] = _package
    _spec.loader.exec_module(_package)

import gc
import io
import json
import signal
import site
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from . import open_files
from .connections import BACKLOG, ContainerServer
from .loading import Config, HandlerFailed, load_handler

FAILURE_PREFIX = "mayfly-failure: "
_LISTEN_FD = "MAYFLY_LISTEN_FD"
_THREAD_STACK = 1 << 20
_ENDING = (signal.SIGTERM, signal.SIGINT)


class Settings(NamedTuple):
    """`site`: directories of packages. `listen_fd`: an inherited listening socket, or None."""

    config: Config
    port: int
    site: list[str]
    listen_fd: int | None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Raises ValueError for a number that is none."""
    config = Config(
        entry=environ.get("MAYFLY_HANDLER") or "/function/handler.py",
        function_id=environ.get("MAYFLY_FUNCTION", ""),
        timeout=float(environ.get("MAYFLY_TIMEOUT") or 60),
        concurrency=max(1, int(environ.get("MAYFLY_CONCURRENCY") or 1)),
        max_body=int(environ.get("MAYFLY_MAX_BODY") or 32 << 20),
    )
    inherited = environ.get(_LISTEN_FD)
    return Settings(
        config=config,
        port=int(environ.get("PORT") or 8080),
        site=[each for each in environ.get("MAYFLY_SITE", "").split(":") if each],
        listen_fd=int(inherited) if inherited else None,
    )


def main() -> NoReturn:
    """Serve until SIGTERM."""
    # As process 1 of a container it would not be ended by a signal that it has no handler for.
    for number in _ENDING:
        signal.signal(number, _end_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A line in one piece, also where threads write at the same time.
            stream.reconfigure(line_buffering=True, write_through=False, errors="backslashreplace")
    settings = read_settings(os.environ)
    open_files.limit(os.environ)
    os.environ.pop(_LISTEN_FD, None)
    threading.stack_size(_THREAD_STACK)
    for directory in settings.site:
        site.addsitedir(directory)
    sys.path.insert(0, os.path.dirname(os.path.abspath(settings.config.entry)))
    try:
        handler = load_handler(settings.config.entry)
    except HandlerFailed as error:
        _say_failed(error)
        _exit(1)
    listener = _listener(settings)
    server = ContainerServer(settings.config, handler, listener)
    server.install_signals()
    gc.freeze()
    if server.serve():
        _replace(listener)
    _exit(0)


def _end_at_once(_number: int, _frame: object) -> None:
    os._exit(0)


def _listener(settings: Settings) -> socket.socket:
    if settings.listen_fd is not None:
        listener = socket.socket(fileno=settings.listen_fd)
        listener.set_inheritable(False)
        return listener
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(
        ("", settings.port), family=family, backlog=BACKLOG, dualstack_ipv6=dual
    )


def _say_failed(error: HandlerFailed) -> None:
    for line in error.trace:
        sys.stderr.write(line + "\n")
    failure = {"reason": error.reason, "message": error.message[:2000]}
    sys.stderr.write(FAILURE_PREFIX + json.dumps(failure) + "\n")


def _replace(listener: socket.socket) -> NoReturn:
    """Become a fresh process on the same socket: nobody is refused meanwhile."""
    listener.set_inheritable(True)
    listener.setblocking(True)
    os.environ[_LISTEN_FD] = str(listener.fileno())
    _flush()
    # What comes meanwhile waits until the fresh process can act on it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _exit(code: int) -> NoReturn:
    _flush()
    # Threads of the handler's that never end do not keep the process.
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:  # user code has closed it, or nobody reads it
            os.write(2, f"not flushed: {error}\n".encode())


if __name__ == "__main__":
    main()
