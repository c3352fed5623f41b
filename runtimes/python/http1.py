"""HTTP/1.1 on one connection (RFC 9112): as much as a server behind a proxy needs."""

from __future__ import annotations

import http
import socket
from collections.abc import Callable
from typing import NamedTuple

MAX_HEAD = 1 << 16
_CHUNK = 1 << 18

Headers = list[tuple[str, str]]


class RequestRefused(Exception):
    """The request cannot be served; the connection ends after `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Request(NamedTuple):
    method: str
    target: str
    version: str
    headers: dict[str, str]
    """Lower-case names; repeated ones joined with a comma (RFC 9110, 5.3)."""
    keep_alive: bool


def parse_head(raw: bytes) -> Request:
    """`raw` is everything before the empty line. Raises RequestRefused (400, 505)."""
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[0].isalpha():
        raise RequestRefused(400, "malformed request line")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise RequestRefused(505, "HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise RequestRefused(400, "malformed header")
        name = name.lower()
        value = value.strip(" \t")
        if name in headers:
            if name in ("content-length", "host"):
                raise RequestRefused(400, f"more than one {name}")
            joint = "; " if name == "cookie" else ", "
            value = headers[name] + joint + value
        headers[name] = value
    connection = headers.get("connection", "").lower()
    keep = "keep-alive" in connection if version == "HTTP/1.0" else "close" not in connection
    return Request(method, target, version, headers, keep)


class Connection:
    """Reads requests from and writes responses to one socket."""

    def __init__(
        self, sock: socket.socket, before_waiting: Callable[[], None] = lambda: None
    ) -> None:
        """before_waiting is called when the peer has not sent what is needed next."""
        self.socket = sock
        self._before_waiting = before_waiting
        self._buffer = bytearray()

    @property
    def has_input(self) -> bool:
        return bool(self._buffer)

    def read_request(self) -> Request | None:
        """The next head; None when the peer has no more. Raises RequestRefused, OSError."""
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise RequestRefused(431, "the request's head is too large")
            data = self._receive(65536)
            if not data:
                return None
            self._buffer += data
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return parse_head(head)

    def _receive(self, size: int) -> bytes:
        try:
            return self.socket.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._before_waiting()
            return self.socket.recv(size)

    def read_body(self, request: Request, limit: int) -> bytes:
        """Raises RequestRefused (400, 413, 501), OSError, EOFError."""
        encoding = request.headers.get("transfer-encoding", "").lower()
        length_text = request.headers.get("content-length")
        if encoding:
            if encoding != "chunked":
                raise RequestRefused(501, f"transfer-encoding {encoding} is not supported")
            if length_text is not None:
                raise RequestRefused(400, "both transfer-encoding and content-length")
            self._continue(request)
            return self._read_chunked(limit)
        if length_text is None:
            return b""
        if not (length_text.isascii() and length_text.isdigit()):
            raise RequestRefused(400, "malformed content-length")
        length = int(length_text)
        if length > limit:
            raise RequestRefused(413, f"a body may have {limit} bytes")
        if length:
            self._continue(request)
        return self._read_exactly(length)

    def _continue(self, request: Request) -> None:
        if request.headers.get("expect", "").lower() == "100-continue" and not self._buffer:
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fill(self) -> None:
        data = self._receive(_CHUNK)
        if not data:
            raise EOFError("the body ends early")
        self._buffer += data

    def _read_exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            self._fill()
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise RequestRefused(400, "a chunk's head is too large")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_chunked(self, limit: int) -> bytes:
        body = bytearray()
        while True:
            size_text = self._read_line().partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise RequestRefused(400, "malformed chunk size") from None
            if size < 0 or len(body) + size > limit:
                raise RequestRefused(413, f"a body may have {limit} bytes")
            if size == 0:
                while self._read_line():
                    pass
                return bytes(body)
            body += self._read_exactly(size)
            if self._read_exactly(2) != b"\r\n":
                raise RequestRefused(400, "malformed chunk")


def response_head(status: int, headers: Headers, close: bool) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if close:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
