"""Functions' listening sockets: made by the platform, handed to every instance."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http
import json
import os
import select
import socket
from pathlib import Path

BACKLOG = 4096
_BIND_RETRY_SECONDS = 3.0


class Listener:
    """One listening socket and its address (see `base.Endpoint`)."""

    def __init__(self, sock: socket.socket, address: str, path: Path | None) -> None:
        self.socket = sock
        self.address = address
        self._path = path

    @property
    def port(self) -> int | None:
        return None if self._path else int(self.address.rpartition(":")[2])

    def fileno(self) -> int:
        return self.socket.fileno()

    def is_open(self) -> bool:
        return self.socket.fileno() >= 0

    def has_waiting(self) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def is_listening(self) -> bool:
        """False after somebody who shares the socket has shut it down."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 1:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def close(self) -> None:
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()


def socket_path(directory: Path, uid: str) -> Path:
    return directory / f"{uid}.sock"


def open_unix(directory: Path, uid: str) -> Listener:
    """A new socket at the function's path; one that was there before is replaced."""
    path = socket_path(directory, uid)
    sock = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # A path through the directory's descriptor may be longer than sun_path.
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.bind(f"/proc/self/fd/{directory_fd}/{path.name}")
        finally:
            os.close(directory_fd)
        path.chmod(0o600)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, f"unix:{path}", path)


async def open_tcp(hint: str | None) -> Listener:
    """A loopback port: the one in `hint` ("tcp:127.0.0.1:41234"), or any."""
    port = int(hint.rpartition(":")[2]) if hint else 0
    deadline = asyncio.get_running_loop().time() + _BIND_RETRY_SECONDS
    while True:
        sock = socket.socket(socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            # Instances of a supervisor that was killed hold the port until the kernel is done.
            in_time = asyncio.get_running_loop().time() < deadline
            if error.errno != errno.EADDRINUSE or not in_time:
                raise
            await asyncio.sleep(0.02)
        else:
            return Listener(sock, f"tcp:127.0.0.1:{sock.getsockname()[1]}", None)


def error_response(status: int, body: bytes) -> bytes:
    phrase = http.HTTPStatus(status).phrase
    head = (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def error_body(status: int, reason: str, message: str, fix: str) -> bytes:
    """The JSON that every failure of the platform has (docs/contracts.md)."""
    code = http.HTTPStatus(status)
    error = {
        "code": status,
        "status": "UNAVAILABLE" if code is http.HTTPStatus.SERVICE_UNAVAILABLE else code.name,
        "stage": "deploy",
        "reason": reason,
        "message": message,
        "fix": fix,
    }
    return json.dumps({"error": error}).encode()


class Answerer:
    """Answers connections with one fixed response, without waiting for anybody."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def answer_waiting(self, listener: Listener, response: bytes) -> int:
        """Take everything that waits now; returns how many."""
        count = 0
        while True:
            try:
                # The description is shared with the program, which may have made it blocking.
                listener.socket.setblocking(False)
                connection, _ = listener.socket.accept()
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return count  # shut down by an instance
                raise
            count += 1
            task = asyncio.create_task(_answer(connection, response))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _answer(connection: socket.socket, response: bytes) -> None:
    """Read the head (a close with unread input would reset the connection), answer, linger."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    try:
        async with asyncio.timeout(2.0):
            head = b""
            while b"\r\n\r\n" not in head and len(head) < 65536:
                data = await loop.sock_recv(connection, 65536)
                if not data:
                    return
                head += data
            await loop.sock_sendall(connection, response)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 65536):
                pass
    except (OSError, TimeoutError):
        return  # the caller went away or sends without end
    finally:
        connection.close()
