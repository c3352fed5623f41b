"""Performs the system calls that instances must ask for (seccomp_unotify(2)).

Each call is done here on a duplicate of the instance's socket, with an address that was copied
once, so that what was checked is what is done. Nothing blocks: a connect that cannot end at
once is waited for by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from services.deployer.drivers.process import network_policy as policy
from services.deployer.drivers.process.sandbox import kernel
from services.deployer.drivers.process.sandbox.seccomp import asked_calls

_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADDFD = 0x40182103
_ADDFD_FLAG_SETFD = 1

_MAX_ADDRESS = 128
_MAX_DATAGRAM = 1 << 16
_MAX_PENDING = 512
_MAX_PORTS = 64
_CALLS = asked_calls(kernel.MACHINE)


class _Refused(Exception):
    """The call fails in the instance with this error number."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


class _Performed(Exception):
    """The answer is already given or is about to be."""


@dataclass(frozen=True)
class _Call:
    id: int
    tid: int
    name: str
    args: tuple[int, ...]


@dataclass
class Ports:
    """What one instance has opened.

    adopted: whether it holds the platform's listening socket. asked: the port asked for, to
    the one given; listening: the asked ones that it listens on.
    """

    adopted: bool = False
    asked: dict[int, int] = field(default_factory=dict[int, int])
    listening: set[int] = field(default_factory=set[int])


@dataclass(frozen=True)
class Surroundings:
    """expected: the port whose bind is answered with `listener`; None for handlers."""

    expected: int | None
    listener: socket.socket
    listener_port: int | None
    public_ports: frozenset[int]
    on_listen: Callable[[int], None]


class NotificationServer:
    """Serves one instance's notifications until it has ended."""

    def __init__(self, fd: int, surroundings: Surroundings) -> None:
        self.ports = Ports()
        self._fd = fd
        self._around = surroundings
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[None]] = set()
        self._held: dict[int, socket.socket] = {}
        self._resolvers = _resolvers()
        self._loop.add_reader(fd, self._on_readable)

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.remove_reader(fd)
        os.close(fd)
        for task in self._pending:
            task.cancel()
        for sock in self._held.values():
            sock.close()

    def _on_readable(self) -> None:
        buffer = bytearray(80)
        try:
            fcntl.ioctl(self._fd, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                if error.errno == errno.ENOENT and _is_hung_up(self._fd):
                    self.close()
                return  # the caller was killed while it waited
            raise
        call_id, tid, _flags, number, _arch, _ip, *args = struct.unpack("=QIIiIQ6Q", buffer)
        call = _Call(call_id, tid, _CALLS.get(number, ""), tuple(args))
        try:
            self._serve(call)
        except _Performed:
            return
        except _Refused as error:
            self._answer(call, -error.number)
        except OSError as error:
            self._answer(call, -(error.errno or errno.EPERM))
        else:
            self._answer(call, 0)

    def _answer(self, call: _Call, result: int) -> None:
        value, error = (result, 0) if result >= 0 else (0, result)
        response = struct.pack("=QqiI", call.id, value, error, 0)
        if self._fd < 0:
            return
        with contextlib.suppress(FileNotFoundError):  # the caller was killed meanwhile
            fcntl.ioctl(self._fd, _SEND, bytearray(response))

    def _serve(self, call: _Call) -> None:
        if call.name == "bind":
            self._bind(call)
        elif call.name == "listen":
            self._listen(call)
        elif call.name == "connect":
            self._connect(call)
        elif call.name == "sendto":
            self._sendto(call)
        elif call.name == "shutdown":
            self._shutdown(call)
        else:
            raise _Refused(errno.EPERM)

    # What the instance has

    def _check_valid(self, call: _Call) -> None:
        """What was read by thread id was the caller's only if it still waits."""
        try:
            fcntl.ioctl(self._fd, _ID_VALID, struct.pack("=Q", call.id))
        except OSError as error:
            raise _Performed from error

    def _socket_of(self, call: _Call) -> socket.socket:
        pidfd = kernel.pidfd_open(_process_of(call.tid))
        try:
            fd = kernel.pidfd_getfd(pidfd, _as_int(call.args[0]))
        finally:
            os.close(pidfd)
        self._check_valid(call)
        try:
            duplicate = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        # Python would wait by itself for a socket that it believes to have a timeout.
        return duplicate

    def _address_of(self, call: _Call, address: int, length: int) -> bytes:
        length = _as_int(length)
        if length < 0 or length > _MAX_ADDRESS:
            raise _Refused(errno.EINVAL)
        try:
            raw = kernel.read_memory(call.tid, address, length) if length else b""
        except OSError as error:
            raise _Refused(errno.EFAULT) from error
        self._check_valid(call)
        return raw

    def _parsed(self, raw: bytes) -> policy.Address:
        address = policy.parse(raw)
        if address is None:
            raise _Refused(errno.EINVAL)
        return address

    # The calls

    def _bind(self, call: _Call) -> None:
        raw = self._address_of(call, call.args[1], call.args[2])
        address = self._parsed(raw)
        if address.family == policy.AF_UNIX:
            self._bind_unix(call, address)
        if address.family not in (policy.AF_INET, policy.AF_INET6):
            if address.family == 16:  # AF_NETLINK, which the filter lets be made for routing
                self._continue(call)
            raise _Refused(errno.EACCES)
        with self._socket_of(call) as sock:
            is_stream = sock.type == socket.SOCK_STREAM
            if is_stream and address.port == self._around.expected:
                self._adopt(call, sock)
                return
            if is_stream:
                target = policy.with_loopback(raw, 0)
                _raw_call("bind", sock, target)
                if address.port:
                    self._keep(address.port, sock)
                return
            # Datagrams: any address, but only a port that the kernel chooses.
            if address.port:
                raise _Refused(errno.EACCES)
            _raw_call("bind", sock, raw)

    def _bind_unix(self, call: _Call, address: policy.Address) -> None:
        if address.abstract or not address.path:
            raise _Refused(errno.EACCES)
        self._continue(call)

    def _continue(self, call: _Call) -> None:
        """Let the kernel do it: fit only for what does no harm whatever its arguments become.

        A bind that turns out to be another one can claim a port, but `listen` is looked at again.
        """
        response = struct.pack("=QqiI", call.id, 0, 0, 1)
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(self._fd, _SEND, bytearray(response))
        raise _Performed

    def _adopt(self, call: _Call, sock: socket.socket) -> None:
        """Put the platform's listening socket in the place of the instance's own."""
        ours = self._around.listener.fileno()
        flags = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(ours, fcntl.F_SETFL, flags)
        newfd = _as_int(call.args[0])
        cloexec = os.O_CLOEXEC if _closes_on_exec(call.tid, newfd) else 0
        request = struct.pack("=QIIII", call.id, _ADDFD_FLAG_SETFD, ours, newfd, cloexec)
        fcntl.ioctl(self._fd, _ADDFD, bytearray(request))
        self.ports.adopted = True
        if self._around.expected is not None and self._around.listener_port is not None:
            self.ports.asked[self._around.expected] = self._around.listener_port

    def _listen(self, call: _Call) -> None:
        with self._socket_of(call) as sock:
            if self._is_ours(sock):
                # Its backlog stays the platform's.
                if self._around.expected is not None:
                    self._heard(self._around.expected)
                return
            if sock.family == socket.AF_UNIX:
                sock.listen(_as_int(call.args[1]))
                return
            host, port = sock.getsockname()[:2]
            if not port:
                # Never bound: the kernel would choose a port on every address.
                loopback = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
                sock.bind((loopback, 0))
                port = sock.getsockname()[1]
            elif host not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                raise _Refused(errno.EACCES)
            if port not in self.ports.asked.values():
                self._keep(port, sock)
            sock.listen(_as_int(call.args[1]))
            self._heard(next(a for a, g in self.ports.asked.items() if g == port))

    def _keep(self, asked: int, sock: socket.socket) -> None:
        """Remember a port, and hold it: who has it next may be another function."""
        if asked not in self._held and len(self._held) >= _MAX_PORTS:
            raise _Refused(errno.EADDRINUSE)
        previous = self._held.pop(asked, None)
        if previous is not None:
            previous.close()
        self._held[asked] = sock.dup()
        self.ports.asked[asked] = int(sock.getsockname()[1])

    def _heard(self, port: int) -> None:
        if port not in self.ports.listening:
            self.ports.listening.add(port)
            self._around.on_listen(port)

    def _is_ours(self, sock: socket.socket) -> bool:
        ours, theirs = os.fstat(self._around.listener.fileno()), os.fstat(sock.fileno())
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)

    def _connect(self, call: _Call) -> None:
        raw = self._address_of(call, call.args[1], call.args[2])
        address = self._parsed(raw)
        sock = self._socket_of(call)
        try:
            if address.family == policy.AF_UNIX:
                self._connect_unix(call, address, sock)
                sock.close()
                return
            if address.family != policy.AF_UNSPEC:
                raw = self._allowed(raw, address, sock)
            self._start_connect(call, sock, raw)
        except _Performed:
            raise  # the socket is now another's to close
        except BaseException:
            sock.close()
            raise

    def _allowed(self, raw: bytes, address: policy.Address, sock: socket.socket) -> bytes:
        """The address to use, or a refusal as if nobody listened."""
        rules = policy.Rules(self.ports.asked, self._around.public_ports, self._resolvers)
        verdict = policy.judge_connect(address, rules, policy.is_local)
        if verdict == "refuse":
            raise _Refused(errno.ECONNREFUSED)
        if verdict == "allow":
            return raw
        port = self.ports.asked[address.port]
        if sock.family == socket.AF_INET6 and port == self._around.listener_port:
            return policy.mapped_loopback(port)
        return policy.with_loopback(raw, port)

    def _connect_unix(self, call: _Call, address: policy.Address, sock: socket.socket) -> None:
        """To the socket at a path as the instance sees it, by a descriptor of that file."""
        if address.abstract or not address.path:
            raise _Refused(errno.ECONNREFUSED)
        base = "root" if address.path.startswith(b"/") else "cwd"
        directory = os.open(f"/proc/{call.tid}/{base}", os.O_PATH | os.O_DIRECTORY)
        try:
            self._check_valid(call)
            fd = kernel.open_in_root(directory, address.path)
        finally:
            os.close(directory)
        try:
            path = f"/proc/self/fd/{fd}".encode()
            _raw_call("connect", sock, struct.pack("=H", policy.AF_UNIX) + path + b"\0")
        finally:
            os.close(fd)

    def _start_connect(self, call: _Call, sock: socket.socket, raw: bytes) -> None:
        flags = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
        blocking = not flags & os.O_NONBLOCK
        if blocking:
            # The caller itself is waiting in connect, so it does not see the change.
            fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags | os.O_NONBLOCK)
        try:
            _raw_call("connect", sock, raw)
        except BlockingIOError:
            if not blocking:
                raise
        except BaseException:
            if blocking:
                fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags)
            raise
        else:
            if blocking:
                fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags)
            sock.close()
            return
        if len(self._pending) >= _MAX_PENDING:
            fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags)
            raise _Refused(errno.EAGAIN)
        task = asyncio.create_task(self._finish_connect(call, sock, flags))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        raise _Performed

    async def _finish_connect(self, call: _Call, sock: socket.socket, flags: int) -> None:
        try:
            writable = asyncio.Event()
            self._loop.add_writer(sock, writable.set)
            try:
                await writable.wait()
            finally:
                self._loop.remove_writer(sock)
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags)
            self._answer(call, -result)
        finally:
            sock.close()

    def _sendto(self, call: _Call) -> None:
        """A datagram with an address: checked, then sent from here."""
        raw = self._address_of(call, call.args[4], call.args[5])
        address = self._parsed(raw)
        with self._socket_of(call) as sock:
            if address.family not in (policy.AF_INET, policy.AF_INET6):
                if sock.family == 16:  # a request for the list of interfaces goes to the kernel
                    self._continue(call)
                raise _Refused(errno.EACCES)
            if sock.type == socket.SOCK_STREAM:
                raise _Refused(errno.EISCONN)
            target = self._allowed(raw, address, sock)
            length = call.args[2]
            if length > _MAX_DATAGRAM:
                raise _Refused(errno.EMSGSIZE)
            data = kernel.read_memory(call.tid, call.args[1], length) if length else b""
            self._check_valid(call)
            sent = kernel.send_to(sock.fileno(), data, socket.MSG_DONTWAIT, target)
        self._answer(call, sent)
        raise _Performed

    def _shutdown(self, call: _Call) -> None:
        with self._socket_of(call) as sock:
            if self._is_ours(sock):
                return  # other instances listen on it as well
            sock.shutdown(_as_int(call.args[1]))


def _raw_call(name: str, sock: socket.socket, address: bytes) -> None:
    kernel.socket_call(name, sock.fileno(), address)


def _as_int(value: int) -> int:
    """An int argument: the low half of the register, signed."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _process_of(tid: int) -> int:
    """The process that a thread belongs to."""
    with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    raise ProcessLookupError(errno.ESRCH, "no such thread")


def _closes_on_exec(tid: int, fd: int) -> bool:
    with open(f"/proc/{tid}/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags:"):
                return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
    return False


def _is_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _resolvers() -> frozenset[policy.IpAddress]:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return policy.loopback_resolvers(file.read())
    except OSError:
        return frozenset()
