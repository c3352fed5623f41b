"""Serves one handler on an inherited listening socket until it is told to stop.

At most `concurrency` connections are accepted at a time; what is beyond waits in the backlog,
where the supervisor sees it. One thread waits for connections, the others serve (leader and
followers). A thread is made when the one before it is about to be busy.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import importlib.util
import inspect
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from . import contract, http1
from .status import StatusPage

_THREAD_STACK = 1 << 20
_KEEP_ALIVE_MS = 30_000


class Config(NamedTuple):
    """entry: the handler's file. timeout: seconds a request may take. max_body: bytes."""

    entry: str
    function_id: str
    timeout: float
    concurrency: int
    max_body: int


class HandlerFailed(Exception):
    """The handler's module cannot be used."""

    def __init__(self, reason: str, message: str, trace: list[str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.trace = trace


def load_handler(entry: str) -> Callable[[Any, Any], Any]:
    """Import the file and return its `handler`. Raises HandlerFailed."""
    name = os.path.splitext(os.path.basename(entry))[0]
    spec = importlib.util.spec_from_file_location(name, entry)
    if spec is None or spec.loader is None:
        raise HandlerFailed("HANDLER_IMPORT_FAILED", f"{entry} is no Python file", [])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # What the loader's exec_module does, without looking for a cached .pyc.
        with open(entry, "rb") as file:
            code = compile(file.read(), entry, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        lines = user_traceback(error)
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise HandlerFailed("HANDLER_IMPORT_FAILED", message, lines) from error
    handler = getattr(module, "handler", None)
    if not callable(handler):
        raise HandlerFailed("HANDLER_MISSING", "the module defines no handler(event, ctx)", [])
    return handler


def user_traceback(error: BaseException) -> list[str]:
    """The traceback without the frames of this server and of the import machinery."""
    own = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (file.startswith((own, "<frozen importlib")) or file == __file__):
            break
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return text.rstrip("\n").split("\n")


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


class Server:
    def __init__(
        self,
        config: Config,
        handler: Callable[[Any, Any], Any],
        listener: socket.socket,
        control: socket.socket,
        status: StatusPage,
    ) -> None:
        self._config = config
        self._handler = handler
        self._listener = listener
        self._listener.setblocking(False)
        self._control = control
        self._status = status
        self._leader = threading.Lock()
        self._count = threading.Lock()
        self._ended = threading.Condition(self._count)
        self._threads = 1
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
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
            self._status.drain()
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # it is full: whoever waits is awake

    def _drain(self, reason: str) -> None:
        """End this instance, which is not fit to go on, after what it has taken."""
        self._status.drain()
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
                slot = self._status.open()
                try:
                    self.serve_connection(http1.Connection(accepted, self._ensure_follower), slot)
                finally:
                    self._status.close(slot)
            finally:
                _hang_up(accepted)

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
                        self._clear_wake()
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

    def _clear_wake(self) -> None:
        try:
            os.read(self._wake_read, 512)
        except BlockingIOError:
            return

    def _ensure_follower(self) -> None:
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

    def serve_connection(self, connection: http1.Connection, slot: int) -> None:
        try:
            while self._serve_request(connection, slot):
                if not connection.has_input and not self._wait_for_more(connection):
                    return
        except http1.RequestRefused as error:
            self._send_error(connection, error.status, error.message)
        except (OSError, EOFError):
            return  # the caller went away

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
            if not ready or self._status.draining:
                return False
            if self._listener.fileno() in ready:
                with self._count:
                    if not self._waiting:
                        return False
                poll.unregister(self._listener)

    def _serve_request(self, connection: http1.Connection, slot: int) -> bool:
        """Serve one request; whether the connection can be used again."""
        request = connection.read_request()
        if request is None:
            return False
        body = connection.read_body(request, self._config.max_body)
        request_id = contract.request_id(request.headers)
        context = contract.Context(self._config.function_id, request_id, self._config.timeout)
        self._ensure_follower()
        self._status.begin(slot)
        try:
            event = contract.make_event(request.method, request.target, request.headers, body)
            reply = contract.make_reply(self._call(event, context))
        except contract.ResultRefused as error:
            self._log(request_id, str(error))
            reply = _internal_error(request_id)
        except MemoryError:
            reply = _internal_error(request_id)
            self._log(request_id, "the handler ran out of memory; this instance is replaced")
            self._drain("memory")
        except BaseException as error:  # noqa: BLE001 - user code
            self._log(request_id, "the handler raised", *user_traceback(error))
            reply = _internal_error(request_id)
        finally:
            self._status.end(slot)
        close = not request.keep_alive or self._status.draining
        return self._send_reply(connection, request, reply, request_id, close) and not close

    def _call(self, event: contract.Event, context: contract.Context) -> Any:
        result = self._handler(event, context)
        if inspect.isawaitable(result):
            return self._await(result)
        return result

    def _await(self, awaitable: Any) -> Any:
        """Run on the one event loop of this instance, so that handlers may share clients."""

        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._event_loop()).result()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="mayfly-loop", daemon=True).start()
                self._loop = loop
            return self._loop

    def _send_reply(
        self,
        connection: http1.Connection,
        request: http1.Request,
        reply: contract.Reply,
        request_id: str,
        close: bool,
    ) -> bool:
        headers = list(reply.headers)
        headers.append(("x-request-id", request_id))
        bodiless = request.method == "HEAD" or reply.status in (204, 304)
        if reply.is_stream:
            return self._send_stream(connection, request, reply, request_id, close)
        if not (bodiless and reply.status in (204, 304)):
            headers.append(("content-length", str(len(reply.body))))
        head = http1.response_head(reply.status, headers, close)
        connection.socket.sendall(head if bodiless else head + reply.body)
        return True

    def _send_stream(
        self,
        connection: http1.Connection,
        request: http1.Request,
        reply: contract.Reply,
        request_id: str,
        close: bool,
    ) -> bool:
        """Send items as they come. An error in the middle cuts the connection off."""
        chunked = request.version == "HTTP/1.1"
        headers = [*reply.headers, ("x-request-id", request_id)]
        if chunked:
            headers.append(("transfer-encoding", "chunked"))
        stream = reply.body
        sock = connection.socket
        try:
            sock.sendall(http1.response_head(reply.status, headers, close or not chunked))
            if request.method == "HEAD" or reply.status in (204, 304):
                return False
            for item in self._items(stream):
                data = contract.encode_item(item)
                if data:
                    sock.sendall(http1.chunk(data) if chunked else data)
            if chunked:
                sock.sendall(http1.LAST_CHUNK)
        except OSError:
            return False  # the caller has left; the generator is closed below
        except contract.ResultRefused as error:
            self._log(request_id, f"in the stream: {error}")
            return False
        except BaseException as error:  # noqa: BLE001 - user code
            self._log(request_id, "the stream raised", *user_traceback(error))
            if isinstance(error, MemoryError):
                self._drain("memory")
            return False
        finally:
            self._close_stream(stream, request_id)
        return chunked

    def _items(self, stream: Any) -> Any:
        if not contract.is_async_stream(stream):
            yield from stream
            return
        iterator = stream.__aiter__()
        while True:
            try:
                item = self._await(iterator.__anext__())
            except StopAsyncIteration:
                return
            yield item

    def _close_stream(self, stream: Any, request_id: str) -> None:
        try:
            if hasattr(stream, "aclose"):
                self._await(stream.aclose())
            elif hasattr(stream, "close"):
                stream.close()
        except BaseException as error:  # noqa: BLE001 - user code
            self._log(request_id, "closing the stream raised", *user_traceback(error))

    def _send_error(self, connection: http1.Connection, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        try:
            connection.socket.sendall(http1.response_head(status, headers, True) + body)
            _linger(connection.socket)
        except OSError:
            return  # the caller did not wait for it

    def _log(self, request_id: str, text: str, *lines: str) -> None:
        sys.stderr.write("\n".join((f"request {request_id}: {text}", *lines)) + "\n")
        sys.stderr.flush()


def _hang_up(sock: socket.socket) -> None:
    """Close for the caller, even where a process that the handler forked still has it open."""
    with contextlib.suppress(OSError):  # the caller was first
        sock.shutdown(socket.SHUT_WR)
    sock.close()


def _linger(sock: socket.socket) -> None:
    """Let the caller read an answer that came before the end of its body (RFC 9112, 9.6)."""
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(1.0)
    for _ in range(256):
        if not sock.recv(65536):
            return


def _internal_error(request_id: str) -> contract.Reply:
    body = json.dumps({"error": "internal", "request_id": request_id}).encode()
    return contract.Reply(500, [("content-type", "application/json")], body, False)
