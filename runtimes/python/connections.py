"""Accepts the connections of a container: one thread each, so that probes are always answered.

Requests beyond `concurrency` wait here for a permit, in the order in which they came; connections
beyond the most that are taken wait in the kernel's backlog.
"""

from __future__ import annotations

import _thread
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import http1, probes
from .loading import Config
from .permits import Permits
from .serving import Serving, hang_up

BACKLOG = 1024
_MORE_CONNECTIONS = 256
# Longer than proxies keep an idle connection, so that they and not this end close it.
_KEEP_ALIVE_MS = 620_000
# How long an idle connection stays open for a request that was sent when the end came.
_LINGER_MS = 200
_MOST_STUCK = 8
# As the gateway would say it, which may be told of the same a moment later.
_OVERDUE = {
    "code": 504,
    "status": "DEADLINE_EXCEEDED",
    "reason": "FUNCTION_TIMEOUT",
    "message": "the function did not begin its response within its `timeout`",
    "fix": "make it answer sooner, or create it with a longer `timeout`",
}


class ContainerServer(Serving):
    """Serves until SIGTERM, or until this process has to be replaced."""

    def __init__(
        self, config: Config, handler: Callable[[Any, Any], Any], listener: socket.socket
    ) -> None:
        self._permits = Permits(config.concurrency, config.timeout, self._on_overdue)
        super().__init__(config, handler, self._permits)
        self._listener = listener
        listener.setblocking(False)
        self._open = 0
        self._active = 0
        self._most = config.concurrency + _MORE_CONNECTIONS
        self._changed = threading.Condition()
        self._replace = False
        self._terminated = False
        self._held = threading.local()
        # Closing the writing end wakes whoever polls the other, for good.
        self._stopped, self._stop = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def install_signals(self) -> None:
        """SIGTERM and SIGINT: accept no more, finish, end."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def serve(self) -> bool:
        """Serve; return whether a fresh process is to go on with the listening socket."""
        _thread.start_new_thread(self._permits.watch, ())
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        while not self._ended():
            listening = self._has_room()
            if listening:
                poll.register(self._listener, select.POLLIN)
            poll.poll()
            self._clear_wake()
            if listening:
                poll.unregister(self._listener)
                self._accept()
        if self._terminated:
            self._accept()  # what had come when the signal did
            self._listener.close()
        self._permits.draining = True
        os.close(self._stop)
        with self._changed:
            self._changed.wait_for(lambda: self._open <= self._permits.stuck)
        return not self._terminated

    def _ended(self) -> bool:
        with self._changed:
            replaced = self._replace and (self._active == 0 or self._permits.stuck > _MOST_STUCK)
        return self._terminated or replaced

    def _has_room(self) -> bool:
        with self._changed:
            return self._open < self._most

    def _accept(self) -> None:
        while self._has_room():
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except (InterruptedError, ConnectionAbortedError):
                continue
            accepted.setblocking(True)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._open += 1
            _thread.start_new_thread(self._connection, (accepted,))

    def _connection(self, accepted: socket.socket) -> None:
        slot = self._permits.open(accepted)
        try:
            connection = http1.Connection(accepted)
            if self._wait_for_more(connection):
                self.serve_connection(connection, slot)
        finally:
            self._permits.close(slot)
            hang_up(accepted)
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
                full = self._open == self._most - 1
            if full:
                self._wake()

    def _exchange(self, connection: http1.Connection, request: http1.Request, slot: int) -> bool:
        if probes.is_probe(request.method, request.target, request.headers):
            return self._probe(connection, request)
        with self._changed:
            self._active += 1
        self._held.permit = False
        try:
            return super()._exchange(connection, request, slot)
        finally:
            # One that was overdue has been counted as over when its caller was told.
            if not self._held.permit or self._permits.give(slot):
                self._request_over()

    def _request_over(self) -> None:
        with self._changed:
            self._active -= 1
            self._changed.notify_all()
            replace = self._replace and self._active == 0
        if replace:
            self._wake()

    def _before_handler(self) -> None:
        self._permits.take()
        self._held.permit = True

    def _probe(self, connection: http1.Connection, request: http1.Request) -> bool:
        status, body = probes.answer(request.target, self._terminated)
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        close = not request.keep_alive or self._permits.draining
        connection.socket.sendall(http1.response_head(status, headers, close) + body)
        return not close

    def _wait_for_more(self, connection: http1.Connection) -> bool:
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(_KEEP_ALIVE_MS)]
        if ready and connection.socket.fileno() not in ready:
            poll.unregister(self._stopped)
            ready = [fd for fd, _ in poll.poll(_LINGER_MS)]
        return bool(ready)

    def _on_overdue(self, sock: socket.socket) -> None:
        """The caller is told; Python cannot stop the thread, so the process is replaced."""
        body = json.dumps({"error": _OVERDUE}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        try:
            sock.send(http1.response_head(504, headers, True) + body, socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            sys.stderr.write(f"the caller of an overdue request is gone: {error}\n")
        message = f"{_OVERDUE['message']} ({self._config.timeout:g} s)"
        sys.stderr.write(f"{message}; this process is replaced\n")
        self._drain("timeout")
        self._request_over()

    def _drain(self, reason: str) -> None:
        with self._changed:
            self._replace = True
        self._wake()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._terminated = True

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # it is full: whoever waits is awake

    def _clear_wake(self) -> None:
        try:
            os.read(self._wake_read, 512)
        except BlockingIOError:
            return
