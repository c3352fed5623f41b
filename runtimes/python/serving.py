"""Serves a handler on connections that are already there, whoever accepts them.

How connections are accepted, counted and ended differs between an instance of the embedded driver
(server.py) and a container (container.py); what happens on them is here, once.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from . import contract, http1
from .loading import Config, user_traceback

if TYPE_CHECKING:
    import asyncio
    from typing import Protocol

    class Status(Protocol):
        """Who is told where requests are; `slot` names the connection."""

        @property
        def draining(self) -> bool: ...
        def begin(self, slot: int) -> None: ...
        def end(self, slot: int) -> None: ...


_ITERABLE_COROUTINE = 0x100  # a generator of `types.coroutine`; CO_ITERABLE_COROUTINE


class Serving:
    """Requests to one handler."""

    def __init__(self, config: Config, handler: Callable[[Any, Any], Any], status: Status) -> None:
        self._config = config
        self._handler = handler
        self._status = status
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()

    def _before_handler(self) -> None:
        """Called when a whole request is there, before the handler has it."""

    def _wait_for_more(self, connection: http1.Connection) -> bool:
        """Whether a further request comes on this connection."""
        raise NotImplementedError

    def _drain(self, reason: str) -> None:
        """This process is not fit to go on after what it has taken."""
        raise NotImplementedError

    def serve_connection(self, connection: http1.Connection, slot: int) -> None:
        try:
            while self._serve_request(connection, slot):
                if not connection.has_input and not self._wait_for_more(connection):
                    return
        except http1.RequestRefused as error:
            self._send_error(connection, error.status, error.message)
        except (OSError, EOFError):
            return  # the caller went away

    def _serve_request(self, connection: http1.Connection, slot: int) -> bool:
        """Serve one request; whether the connection can be used again."""
        request = connection.read_request()
        return request is not None and self._exchange(connection, request, slot)

    def _exchange(self, connection: http1.Connection, request: http1.Request, slot: int) -> bool:
        """Let the handler answer a request whose head was read; see _serve_request."""
        body = connection.read_body(request, self._config.max_body)
        request_id = contract.request_id(request.headers)
        context = contract.Context(self._config.function_id, request_id, self._config.timeout)
        self._before_handler()
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
        if _is_awaitable(result):
            return self._await(result)
        return result

    def _await(self, awaitable: Any) -> Any:
        """Run on the one event loop of this instance, so that handlers may share clients."""

        # Half of the time that an instance takes to start, if all had to wait for it.
        import asyncio

        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._event_loop()).result()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

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


def _is_awaitable(value: Any) -> bool:
    """As `inspect.isawaitable`, whose module takes its time to import."""
    if isinstance(value, GeneratorType):
        return bool(value.gi_code.co_flags & _ITERABLE_COROUTINE)
    return isinstance(value, Awaitable)


def hang_up(sock: socket.socket) -> None:
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
