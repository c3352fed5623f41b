"""Serves one handler on an inherited listening socket until it is told to stop.

At most `concurrency` connections are accepted at a time; what is beyond waits in the backlog,
where the supervisor sees it. One thread waits for connections, the others serve (leader and
followers). A thread is made when the one before it is about to be busy.
"""

from __future__ import annotations

import _thread
import asyncio
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from . import http1
from .loading import Config, HandlerFailed, load_handler
from .serving import Serving, hang_up
from .status import StatusPage

_THREAD_STACK = 1 << 20
_KEEP_ALIVE_MS = 30_000
# Imported where they are used, later or never; here before the fork, and so for nothing.
_AT_HAND = (asyncio, traceback, uuid)


def run(config: Config, listen_fd: int, control_fd: int, status_fd: int) -> int:
    """Import the handler, say so, and serve. Returns the exit code."""
    control = socket.socket(fileno=control_fd)
    status = StatusPage(status_fd, config.concurrency)
    threading.stack_size(_THREAD_STACK)
    try:
        handler = load_handler(config.entry)
    except HandlerFailed as error:
        failure = {"reason": error.reason, "message": error.message[:2000], "trace": error.trace}
        failure["trace"] = error.trace[-40:]
        for line in error.trace:
            sys.stderr.write(line + "\n")
        control.send(json.dumps({"failed": failure}).encode())
        return 1
    server = Server(config, handler, socket.socket(fileno=listen_fd), control, status)
    server.install_signals()
    gc.freeze()
    control.send(b'{"ready":true}')
    server.serve()
    return 0


class Server(Serving):
    """An instance: it accepts from a socket that the supervisor holds as well."""

    def __init__(
        self,
        config: Config,
        handler: Callable[[Any, Any], Any],
        listener: socket.socket,
        control: socket.socket,
        status: StatusPage,
    ) -> None:
        super().__init__(config, handler, status)
        self._listener = listener
        self._listener.setblocking(False)
        self._control = control
        self._page = status
        self._leader = threading.Lock()
        self._count = threading.Lock()
        self._ended = threading.Condition(self._count)
        self._threads = 1
        self._waiting = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)

    def close(self) -> None:
        """Close what was made here."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    def install_signals(self) -> None:
        """SIGTERM, SIGINT and the soft CPU limit: accept no more, finish, end."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGXCPU, self._on_cpu)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._stop()

    def _on_cpu(self, _number: int, _frame: Any) -> None:
        self._drain("cpu")

    def _stop(self) -> None:
        if not self._status.draining:
            self._page.drain()
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # it is full: whoever waits is awake

    def _drain(self, reason: str) -> None:
        """End this instance, which is not fit to go on, after what it has taken."""
        self._page.drain()
        try:
            self._control.send(json.dumps({"draining": reason}).encode())
        except OSError as error:
            sys.stderr.write(f"cannot reach the supervisor: {error}\n")
        self._stop()

    def serve(self) -> None:
        """Serve in this thread and others until drained."""
        self._work()
        with self._ended:
            self._ended.wait_for(lambda: self._threads == 1)

    def _work(self) -> None:
        while True:
            accepted = self._accept()
            if accepted is None:
                return
            try:
                slot = self._page.open()
                try:
                    self.serve_connection(http1.Connection(accepted, self._before_handler), slot)
                finally:
                    self._page.close(slot)
            finally:
                hang_up(accepted)

    def _accept(self) -> socket.socket | None:
        with self._count:
            self._waiting += 1
        try:
            with self._leader:
                accepted = self._wait_for_connection()
        finally:
            with self._count:
                self._waiting -= 1
        return accepted

    def _wait_for_connection(self) -> socket.socket | None:
        while True:
            if self._status.draining:
                return None
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                for fd, _events in self._poll.poll():
                    if fd == self._wake_read and not self._status.draining:
                        self._take_signals()
            except InterruptedError:
                continue
            except OSError as error:
                # User code closed or broke the socket: nothing can be served any more.
                sys.stderr.write(f"the listening socket is broken: {error}\n")
                self._drain("socket")
                return None
            else:
                accepted.setblocking(True)
                return accepted

    def _take_signals(self) -> None:
        """Do what a signal asks for: Python's handlers run in the main thread alone, which may have
        begun to wait for a lock when it came, and has its turn only after that."""
        try:
            told = os.read(self._wake_read, 512)
        except BlockingIOError:
            return
        if signal.SIGXCPU in told and not self._status.draining:
            self._drain("cpu")
        # Others that wait are told again: what woke them may have been read before they looked.
        if self._status.draining or signal.SIGTERM in told or signal.SIGINT in told:
            self._stop()

    def _before_handler(self) -> None:
        with self._count:
            if self._waiting or self._threads >= self._config.concurrency:
                return
            try:
                # Unlike threading.Thread it does not wait until the thread runs.
                _thread.start_new_thread(self._follow, ())
            except RuntimeError as error:  # the limit on processes; the threads there are go on
                sys.stderr.write(f"no further thread: {error}\n")
                return
            self._threads += 1
            self._waiting += 1  # it is about to

    def _follow(self) -> None:
        with self._count:
            self._waiting -= 1
        try:
            self._work()
        finally:
            with self._ended:
                self._threads -= 1
                self._ended.notify_all()

    def _wait_for_more(self, connection: http1.Connection) -> bool:
        """Whether a further request comes on this connection while nobody else waits."""
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(_KEEP_ALIVE_MS)]
            if connection.socket.fileno() in ready:
                return True
            if self._wake_read in ready and not self._status.draining:
                self._take_signals()
            if not ready or self._status.draining:
                return False
            if self._listener.fileno() in ready:
                with self._count:
                    if not self._waiting:
                        return False
                poll.unregister(self._listener)
