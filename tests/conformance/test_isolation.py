"""What a function cannot reach, tried from inside one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.conformance.door import Door, Json

PROBE = """
import ctypes, errno, json, os, socket, stat

libc = ctypes.CDLL(None, use_errno=True)

def attempt(what):
    try:
        return {"ok": what()}
    except BaseException as error:
        return {"error": type(error).__name__, "errno": getattr(error, "errno", None)}

def syscall(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

def status():
    lines = open("/proc/self/status").read().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)

def sockets():
    found = []
    for top, folders, files in os.walk("/"):
        if top.startswith(("/proc", "/sys")):
            folders[:] = []
            continue
        for name in files:
            path = os.path.join(top, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    found.append(path)
            except OSError:
                pass
    return found

def connect(host, port):
    with socket.create_connection((host, port), 2):
        return True

def handler(event, ctx):
    asked = json.loads(event["body"] or "{}")
    kind = asked.get("kind")
    if kind == "status":
        found = status()
        return {k: found[k].strip() for k in ("Uid", "CapEff", "CapBnd", "CapPrm", "NoNewPrivs")}
    if kind == "environ":
        return dict(os.environ)
    if kind == "read":
        return {p: attempt(lambda p=p: len(open(p, "rb").read(10))) for p in asked["paths"]}
    if kind == "list":
        return {p: attempt(lambda p=p: sorted(os.listdir(p))) for p in asked["paths"]}
    if kind == "write":
        return {p: attempt(lambda p=p: open(p, "w").write("x")) for p in asked["paths"]}
    if kind == "pids":
        return sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
    if kind == "cmdlines":
        return [open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc") if p.isdigit()]
    if kind == "sockets":
        return sockets()
    if kind == "connect":
        return attempt(lambda: connect(asked["host"], asked["port"]))
    if kind == "abstract":
        def reach():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(2)
                s.connect("\\0" + asked["name"])
                return True
        return attempt(reach)
    if kind == "datagram":
        def send():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                return s.sendto(b"hello", (asked["host"], asked["port"]))
        return attempt(send)
    if kind == "kernel":
        return {
            "ptrace": attempt(lambda: syscall(101, 16, os.getppid(), 0, 0)),
            "mount": attempt(lambda: syscall(165, b"none", b"/tmp", b"tmpfs", 0, 0)),
            "umount": attempt(lambda: syscall(166, b"/tmp", 0)),
            "unshare user": attempt(lambda: syscall(272, 0x10000000)),
            "unshare mount": attempt(lambda: syscall(272, 0x00020000)),
            "setns": attempt(lambda: syscall(308, os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)),
            "bpf": attempt(lambda: syscall(321, 0, 0, 0)),
            "keyctl": attempt(lambda: syscall(250, 0, -3, 0)),
            "io_uring_setup": attempt(lambda: syscall(425, 1, 0)),
            "pivot_root": attempt(lambda: syscall(155, b"/", b"/")),
            "chroot": attempt(lambda: syscall(161, b"/tmp")),
            "setuid": attempt(lambda: os.setuid(0)),
            "sethostname": attempt(lambda: socket.sethostname("other")),
            "raw socket": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
            "kill everybody": attempt(lambda: os.kill(1, 9)),
        }
    if kind == "mounts":
        return [open("/proc/self/mountinfo").read()]
    return {}
"""


class Inside:
    """A function that tries things and says what came of it."""

    def __init__(self, mayfly: Door, function: Json) -> None:
        self._mayfly = mayfly
        self._function = function

    async def ask(self, kind: str, **more: Any) -> Any:
        """Let the function try `kind`."""
        answer = await self._mayfly.call(
            self._function, method="POST", content=json.dumps({"kind": kind, **more})
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


SCRIPT = (
    "# /// script\n# dependencies = []\n# ///\n"
    + PROBE
    + """
import http.server

class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = self.rfile.read(int(self.headers["content-length"])).decode()
        body = json.dumps(handler({"body": text}, None)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Server).serve_forever()
"""
)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[{"handler": PROBE}, {"script": SCRIPT}], ids=list
)
async def prober(standing: Door, request: pytest.FixtureRequest) -> Json:
    """A handler and a script that try things."""
    return await standing.ready(**request.param, env={"MINE": "1"}, ttl="1800s")


@pytest.fixture
def inside(mayfly: Door, prober: Json) -> Inside:
    """What asks one of the two."""
    return Inside(mayfly, prober)


def denied(result: Json) -> bool:
    """Whether an attempt failed."""
    return "ok" not in result


async def test_no_privileges(inside: Inside) -> None:
    status = await inside.ask("status")
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapPrm"], 16) == 0
    uid = status["Uid"].split()[0]
    assert uid != "0"


async def test_the_environment_holds_nothing_of_the_platform(
    inside: Inside, on_cluster: bool
) -> None:
    environ = await inside.ask("environ")
    assert environ["MINE"] == "1"
    assert "MAYFLY_FUNCTION" in environ
    assert "MAYFLY_URL" in environ
    ours = {k for k in environ if k.startswith("MAYFLY_")}
    assert not {k for k in ours if "DATABASE" in k or "DATA_DIR" in k or "LISTEN" in k}, ours
    if on_cluster:
        return  # it inherits nothing from here, and its image may say what this machine says
    inherited = {k for k in os.environ if k not in {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "PORT"}}
    leaked = {k for k in environ if k in inherited and environ[k] == os.environ[k]}
    harmless = {"PWD", "SHLVL", "_", "TMPDIR", "USER", "LOGNAME", "SHELL"}
    assert {name for name in leaked - harmless if not name.startswith("PYTHON")} == set()


async def test_only_its_own_processes_are_seen(mayfly: Door, inside: Inside) -> None:
    await mayfly.ready(handler="def handler(e, c):\n    return 1\n")
    pids = await inside.ask("pids")
    assert 1 <= len(pids) <= 6, pids
    cmdlines = " ".join(await inside.ask("cmdlines"))
    assert "postgres" not in cmdlines
    assert "envoy" not in cmdlines
    assert "services." not in cmdlines


async def test_files_of_the_machine_are_out_of_reach(inside: Inside) -> None:
    secret = ["/etc/shadow", "/root/.bashrc", "/proc/1/environ_", "/proc/kcore", "/dev/mem"]
    read = await inside.ask("read", paths=secret)
    assert all(denied(r) for r in read.values()), read
    places = ["/root", "/home", "/srv", "/opt", "/proc/1/root/root", "/var/lib/mayfly"]
    listed = await inside.ask("list", paths=places)
    # Where an interpreter or a home lies below one, its folder is there with that alone in it.
    assert all(denied(r) or len(r["ok"]) <= 1 for r in listed.values()), listed


async def test_only_tmp_and_home_can_be_written(inside: Inside) -> None:
    paths = ["/x", "/usr/x", "/etc/x", "/function/x", "/function/handler.py", "/bin/x", "/proc/x"]
    written = await inside.ask("write", paths=[*paths, "/tmp/x"])
    assert not denied(written["/tmp/x"])
    assert all(denied(written[p]) for p in paths), written


async def test_tmp_is_private(mayfly: Door, inside: Inside) -> None:
    other = Inside(mayfly, await mayfly.ready(handler=PROBE))
    path = f"/tmp/{mayfly.new_id('secret')}"
    assert not denied((await other.ask("write", paths=[path]))[path])
    assert denied((await inside.ask("read", paths=[path]))[path])


async def test_no_socket_of_the_platform_is_in_sight(inside: Inside) -> None:
    assert await inside.ask("sockets") == []


async def test_the_mount_table_names_no_other_function(mayfly: Door, inside: Inside) -> None:
    other = await mayfly.ready(handler=PROBE)
    (mounts,) = await inside.ask("mounts")
    assert other["uid"] not in mounts
    assert "/postgres" not in mounts
    assert "/sockets" not in mounts


async def test_the_kernel_refuses(inside: Inside, on_cluster: bool) -> None:
    results = await inside.ask("kernel")
    allowed = {name for name, result in results.items() if not denied(result)}
    # A process may signal its own pid 1, which the kernel shields from its own namespace. The
    # seccomp profile of container runtimes lets a process trace others of its own container.
    assert allowed <= {"kill everybody"} | ({"ptrace"} if on_cluster else set()), results
    assert (await inside.ask("status"))["NoNewPrivs"] == "1"


async def test_loopback_is_closed_but_for_the_gateway(mayfly: Door, inside: Inside) -> None:
    if mayfly.host not in {"127.0.0.1", "localhost", "::1"}:
        pytest.skip(f"the loopback interface of {mayfly.host} is not this machine's")
    hits: list[str] = []

    def count(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hits.append("connected")
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for host in ("127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "::ffff:127.0.0.1"):
            result = await inside.ask("connect", host=host, port=port)
            assert denied(result), (host, result)
        own = await inside.ask("connect", host="127.0.0.1", port=urlsplit(mayfly.url).port)
        assert own == {"ok": True}
    assert hits == []


async def test_datagrams_do_not_reach_loopback(mayfly: Door, inside: Inside) -> None:
    if mayfly.host not in {"127.0.0.1", "localhost", "::1"}:
        pytest.skip(f"the loopback interface of {mayfly.host} is not this machine's")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        await inside.ask("datagram", host="127.0.0.1", port=receiver.getsockname()[1])
        with pytest.raises(BlockingIOError):
            receiver.recv(10)


async def test_abstract_sockets_are_closed(mayfly: Door, inside: Inside) -> None:
    if mayfly.host not in {"127.0.0.1", "localhost", "::1"}:
        pytest.skip(f"the abstract sockets of {mayfly.host} are not this machine's")
    name = mayfly.new_id("abstract")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        assert denied(await inside.ask("abstract", name=name))


async def test_functions_do_not_reach_each_other_but_by_the_gateway(mayfly: Door) -> None:
    target = await mayfly.ready(handler="def handler(e, c):\n    return 'reached'\n")
    code = (
        "import urllib.request\n"
        "def handler(event, ctx):\n"
        "    with urllib.request.urlopen(event['query']['url'], timeout=5) as r:\n"
        "        return r.read().decode()\n"
    )
    caller = await mayfly.ready(handler=code)
    url = f"{mayfly.url}/f/{target['name'].removeprefix('functions/')}"
    answer = await mayfly.call(caller, f"?url={url}")
    assert (answer.status_code, answer.text.strip('"')) == (200, "reached")
