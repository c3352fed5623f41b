"""What a function can see and reach, tried from inside of one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

from tests.drivers.conftest import Start, World, call

# Runs the expression in the body and answers its value, or the error's name.
EVAL = """
import ctypes, errno, os, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*args):
    if libc.syscall(*args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return 'done'
def reach(host, port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, kind) as s:
        s.settimeout(2)
        s.connect((host, port))
        return 'connected'
def handler(event, ctx):
    try:
        return {'value': eval(event['body'])}
    except OSError as error:
        return {'error': errno.errorcode.get(error.errno, str(error))}
    except Exception as error:
        return {'error': type(error).__name__ + ': ' + str(error)}
"""


class Inside:
    def __init__(self, address: str) -> None:
        self.address = address

    async def run(self, expression: str) -> Any:
        answer = await call(self.address, method="POST", body=expression.encode())
        assert answer.status == 200, answer
        values = json.loads(answer.body)
        return values.get("value", values.get("error"))


async def inside(world: World, uid: str = "a", **values: Any) -> Inside:
    return Inside(await world.handler(uid, EVAL, **values))


async def test_no_rights(world: World) -> None:
    it = await inside(world)
    status = await it.run("open('/proc/self/status').read()")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapAmb"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert 0 not in [int(word) for word in fields["Uid"].split()]
    assert await it.run("os.setuid(0)") in ("EPERM", "EINVAL")


async def test_refused_calls(world: World) -> None:
    it = await inside(world)
    for call_, wanted in {
        "syscall(101, 0, 1, 0, 0)": "EPERM",  # ptrace
        "syscall(165, b'none', b'/tmp', b'tmpfs', 0, None)": "EPERM",  # mount
        "syscall(272, 0x10000000)": "EPERM",  # unshare a user namespace
        "syscall(56, 0x10000011, 0, 0, 0, 0)": "EPERM",  # clone into one
        "syscall(435, 0, 0)": "ENOSYS",  # clone3
        "syscall(425, 8, 0)": "ENOSYS",  # io_uring_setup
        "syscall(321, 0, 0, 0)": "EPERM",  # bpf
        "syscall(250, 0, 0, 0, 0)": "EPERM",  # keyctl
        "syscall(310, 1, 0, 0, 0, 0, 0)": "EPERM",  # process_vm_readv
        "syscall(308, 0, 0)": "EPERM",  # setns
        "socket.socket(socket.AF_PACKET)": "EAFNOSUPPORT",
        "socket.socket(socket.AF_VSOCK)": "EAFNOSUPPORT",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)": "EPERM",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)": "EPERM",
    }.items():
        if os.uname().machine == "x86_64":
            assert (call_, await it.run(call_)) == (call_, wanted)
    assert await it.run("[i[1] for i in socket.if_nameindex()]") != []
    assert await it.run("str(socket.getaddrinfo('localhost', 80)[0][4][1])") == "80"


async def test_files(world: World) -> None:
    it = await inside(world)
    other = await inside(world, "b")
    assert await it.run("sorted(os.listdir('/function'))") == ["handler.py"]
    assert await it.run("open('/function/x', 'w')") == "EROFS"
    assert await it.run("open('/usr/x', 'w')") == "EROFS"
    assert await it.run("open('/x', 'w')") == "EROFS"
    assert await it.run(f"os.path.exists({str(world.data_dir)!r})") is False
    assert await it.run("os.path.exists('/run') or os.path.exists('/sys')") is False
    home = str(Path.home())
    seen = await it.run(f"os.listdir({home!r}) if os.path.isdir({home!r}) else []")
    assert set(seen) <= {".pyenv", ".local"}  # only what leads to the interpreter
    await it.run("open('/tmp/mine', 'w').write('x')")
    assert await it.run("os.listdir('/tmp')") != []
    assert await other.run("os.path.exists('/tmp/mine')") is False
    assert await it.run("os.environ['HOME'], os.access(os.environ['HOME'], os.W_OK)") == [
        "/tmp/home",
        True,
    ]
    mounts = await it.run("open('/proc/self/mountinfo').read()")
    assert str(world.data_dir / "process") not in mounts


async def test_processes(world: World) -> None:
    it = await inside(world)
    await inside(world, "b")
    assert await it.run("[p for p in os.listdir('/proc') if p.isdigit()]") == ["1"]
    assert await it.run(f"os.kill({os.getpid()}, 0)") == "ESRCH"
    fds = await it.run(
        "[os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{f}')]"
    )
    assert not [fd for fd in fds if str(world.data_dir) in fd or "/ns/" in fd or "root" in fd]
    assert await it.run("open('/proc/sys/kernel/hostname', 'w')") in ("EACCES", "EROFS")
    assert await it.run("socket.gethostname()") == "fn-a"
    assert (
        await it.run(
            "subprocess.run(['/bin/sh', '-c', 'echo $((6*7))'], "
            "capture_output=True).stdout.decode()"
        )
        == "42\n"
    )


async def test_loopback_of_others(world: World) -> None:
    """Neither the platform's ports, by whatever name of this machine, nor other functions'."""
    it = await inside(world)
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        names = ["127.0.0.1", "127.8.8.8", "0.0.0.0", "::ffff:127.0.0.1", *own_addresses()]
        for name in names:
            assert (name, await it.run(f"reach({name!r}, {port})")) == (name, "ECONNREFUSED")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        port = datagram.getsockname()[1]
        send = (
            f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))"
        )
        assert await it.run(send) == "ECONNREFUSED"


def own_addresses() -> list[str]:
    """The address that packets to elsewhere come from, where there is one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


async def test_elsewhere_is_as_outside(world: World) -> None:
    """A documentation address (RFC 5737): whatever the network says to it, it says to both."""
    it = await inside(world)
    expression = (
        "(lambda s: (s.settimeout(0.3), s.connect_ex(('192.0.2.1', 9)), s.close())[1])"
        "(socket.socket())"
    )
    assert await it.run(expression) == await asyncio.to_thread(eval, expression, {"socket": socket})


async def test_public_port_can_be_reached(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        world = await start(public_ports=(port,))
        it = await inside(world)
        assert await it.run(f"reach('127.0.0.1', {port})") == "connected"
        blocking = f"socket.socket().connect(('127.0.0.1', {port})) or 'blocking'"
        assert await it.run(blocking) == "blocking"


async def test_own_ports_are_private(world: World) -> None:
    it = await inside(world)
    served = await it.run(
        "(globals().__setitem__('s', socket.create_server(('0.0.0.0', 7777))), "
        "s.getsockname()[0])[1]"
    )
    assert served == "127.0.0.1"
    assert await it.run("reach('127.0.0.1', 7777)") == "connected"
    other = await inside(world, "b")
    assert await other.run("reach('127.0.0.1', 7777)") == "ECONNREFUSED"
    never_bound = "(globals().__setitem__('u', socket.socket()), u.listen(), u.getsockname()[0])[2]"
    assert await it.run(never_bound) == "127.0.0.1"


async def test_unix_sockets(world: World) -> None:
    it = await inside(world)
    name = f"mayfly-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        assert await it.run(f"socket.socket(socket.AF_UNIX).connect('\\0{name}')") == "ECONNREFUSED"
    path = str(world.data_dir / "process" / "supervisor.sock")
    for trick in (path, f"/proc/self/root{path}", f"/proc/1/root{path}"):
        assert await it.run(f"socket.socket(socket.AF_UNIX).connect({trick!r})") in (
            "ENOENT",
            "EXDEV",
        )
    make = (
        "(globals().__setitem__('l', socket.socket(socket.AF_UNIX)), l.bind('/tmp/own.sock'), "
        "l.listen(), socket.socket(socket.AF_UNIX).connect('/tmp/own.sock'), 'own')[4]"
    )
    assert await it.run(make) == "own"
    link = (
        f"(os.symlink({path!r}, '/tmp/link'), socket.socket(socket.AF_UNIX).connect('/tmp/link'))"
    )
    assert await it.run(link) == "ENOENT"


async def test_pools_and_managers_work(world: World) -> None:
    it = await inside(world)
    pool = (
        "(lambda p: (p.submit(pow, 2, 10).result(), p.shutdown())[0])"
        "(__import__('concurrent.futures').futures.ProcessPoolExecutor(2))"
    )
    assert await it.run(pool) == 1024
    manager = (
        "(lambda m: (m.list([1, 2])[:], m.shutdown())[0])(__import__('multiprocessing').Manager())"
    )
    assert await it.run(manager) == [1, 2]


async def test_connect_that_hangs_blocks_nobody(world: World) -> None:
    """A blocking connect is waited for by the event loop of the supervisor."""
    it = await inside(world, timeout=3.0)
    with socket.create_server(("127.0.0.1", 0)):
        hanging = asyncio.create_task(
            call(it.address, method="POST", body=b"reach('192.0.2.1', 9)")
        )
        other = await inside(world, "b")
        assert await other.run("1 + 1") == 2
        assert (await hanging).status in (200, 504)
