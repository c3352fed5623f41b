"""Runs functions as processes. Its own process: no gRPC, no threads, standard library only.

    python -m services.deployer.drivers.process.supervisor '{"data_dir": ..., ...}'

It ends with the process that started it, and everything that it started ends with it: zygotes
die with their parent, instances live in the pid namespaces of zygotes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.deployer.drivers import base
from services.deployer.drivers.process import listeners, memory, protocol, residue
from services.deployer.drivers.process.connections import Count, read_table
from services.deployer.drivers.process.functions import Function
from services.deployer.drivers.process.instances import Hooks, Instance, Place, find_interpreter
from services.deployer.drivers.process.listeners import Answerer, Listener
from services.deployer.drivers.process.sandbox import kernel, rootfs
from services.deployer.drivers.process.zygotes import Zygote

EXIT_LOCKED = 3

_UID_FIRST = 0x70000000
_UID_BLOCK = 1 << 16
_MAX_QUEUED = 20_000
_MEMORY_CHECK = 0.2
_CONNECTIONS_VALID = 0.2
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Settings:
    """data_dir: the platform's. interpreter: that of the zygote kept warm.

    public_ports: the gateway's, which functions may connect to. scratch_bytes: size of an
    instance's /tmp. parent: the process to end with; 0 for none. zygote_idle: seconds that an
    interpreter's zygote stays after its last function.
    """

    data_dir: str
    interpreter: str
    public_ports: tuple[int, ...] = ()
    scratch_bytes: int = 64 << 20
    parent: int = 0
    zygote_idle: float = 300.0


class Client:
    """One deployer that is connected."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._dropped = 0

    @property
    def _is_behind(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > (8 << 20)

    def send(self, message: protocol.Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    def notify(self, notification: base.Notification) -> None:
        """Log lines are dropped, and counted, for a client that does not read."""
        if isinstance(notification, base.LogLine):
            if self._is_behind:
                self._dropped += 1
                return
            if self._dropped:
                lost, self._dropped = self._dropped, 0
                text = f"({lost} lines dropped: the deployer did not read them)"
                self.notify(base.LogLine(notification.uid, "", "platform", time.time(), text))
        self.send(protocol.notification_to_json(notification))


class Supervisor:
    def __init__(self, settings: Settings, is_root: bool) -> None:
        self.answerer = Answerer()
        self._settings = settings
        self._is_root = is_root
        self._data_dir = Path(settings.data_dir)
        self._home = self._data_dir / "process"
        self._sockets = self._home / "sockets"
        self._root = self._home / "root"
        self._marker = residue.marker_of(self._data_dir)
        self._functions: dict[str, Function] = {}
        self._instances: dict[str, Instance] = {}
        self._owners: dict[str, tuple[Zygote, int]] = {}
        self._by_child: dict[tuple[Zygote, int], Instance] = {}
        self._zygotes: dict[str, asyncio.Future[Zygote]] = {}
        self._slots: list[int] = []
        self._next_slot = 0
        self._count = 0
        self._clients: list[Client] = []
        self._waiting: list[base.Notification] = []
        self._tasks: set[asyncio.Future[Any]] = set()
        self._connections: tuple[float, dict[int, Count]] = (0.0, {})
        block = zlib.crc32(str(self._data_dir).encode()) % 2000
        self._first_uid = _UID_FIRST + block * _UID_BLOCK

    # Life

    async def serve(self, stop: asyncio.Event) -> None:
        for directory in (self._home, self._sockets, self._root):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        path = self._home / "supervisor.sock"
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(
            self._serve_client, path, limit=protocol.MAX_LINE, backlog=64
        )
        path.chmod(0o600)
        self._background(self._zygote(self._settings.interpreter))
        watches = [
            asyncio.create_task(self._watch_memory()),
            asyncio.create_task(self._watch_zygotes()),
        ]
        try:
            await stop.wait()
        finally:
            for watch in watches:
                watch.cancel()
            server.close()
            path.unlink(missing_ok=True)
            for future in self._zygotes.values():
                if future.done() and not future.cancelled() and future.exception() is None:
                    future.result().close()
            await self._wait_for_children()

    async def _wait_for_children(self) -> None:
        """Zygotes end when their channel is closed, and what they hold with them."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - does not wait
            except ChildProcessError:
                return
            if pid == 0:
                await asyncio.sleep(0.005)

    def _reap(self) -> None:
        """Zygotes become children of this process when their launchers end."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None or info.si_pid in self._launchers():
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(info.si_pid, os.WNOHANG)

    def _launchers(self) -> set[int]:
        return Zygote.launching

    # Clients

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        client = Client(writer)
        client.send({"supervisor": os.getpid()})
        self._clients.append(client)
        waiting, self._waiting = self._waiting, []
        for notification in waiting:
            self.notify(notification)
        try:
            while line := await reader.readline():
                self._background(self._serve_request(client, json.loads(line)))
        except ConnectionError:
            return  # it is gone
        except ValueError as error:
            sys.stderr.write(f"supervisor: a client was cut off: {error}\n")
        finally:
            self._clients.remove(client)
            writer.close()

    async def _serve_request(self, client: Client, request: protocol.Message) -> None:
        methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "reserve": self.reserve,
            "deploy": self.deploy,
            "restore": self.restore,
            "fail": self.fail,
            "touch": self.touch,
            "remove": self.remove,
            "list_resources": self.list_resources,
            "remove_resource": self.remove_resource,
        }
        answer: protocol.Message = {"id": request["id"]}
        try:
            answer["result"] = await methods[request["method"]](**request["params"])
        except base.DeployFailed as failure:
            answer["error"] = {"deploy_failed": protocol.failure_to_json(failure)}
        except Exception as error:  # noqa: BLE001 - every fault is the caller's to see
            traceback.print_exc()
            answer["error"] = {"message": f"{type(error).__name__}: {error}"}
        client.send(answer)

    def notify(self, notification: base.Notification) -> None:
        """To the deployer that has been connected for longest: they share one database."""
        if self._clients:
            self._clients[0].notify(notification)
        elif len(self._waiting) < _MAX_QUEUED:
            self._waiting.append(notification)

    # Methods

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> str:
        function = self._functions.get(uid)
        if function is None:
            listener = await self._listen(uid, kind, address_hint)
            if (known := self._functions.get(uid)) is not None:  # by another caller meanwhile
                if listener.address != known.listener.address:
                    listener.close()
                return known.listener.address
            function = self._functions[uid] = Function(uid, listener, self)
        elif not function.listener.is_open():
            function.listener = await self._listen(uid, kind, address_hint)
        return function.listener.address

    async def _listen(self, uid: str, kind: str, hint: str | None) -> Listener:
        if "/" in uid or not uid:
            raise ValueError(f"{uid!r} is no uid")
        if kind == "script":
            return await listeners.open_tcp(hint)
        return listeners.open_unix(self._sockets, uid)

    async def renew_listener(self, function: Function) -> Listener:
        """The same address after an instance has broken the socket."""
        old = function.listener
        kind = "script" if old.port is not None else "handler"
        old.socket.close()
        return await self._listen(function.uid, kind, old.address)

    async def deploy(self, workload: protocol.Message) -> protocol.Message:
        value = protocol.workload_from_json(workload)
        await self.reserve(value.uid, value.kind, None)
        deployed = await self._functions[value.uid].deploy(value)
        return {
            "instance": deployed.instance,
            "memory_bytes": deployed.memory_bytes,
            "seconds": deployed.seconds,
        }

    async def restore(self, workloads: list[protocol.Message], endpoints: dict[str, str]) -> None:
        for values in workloads:
            workload = protocol.workload_from_json(values)
            await self.reserve(workload.uid, workload.kind, endpoints.get(workload.uid))
            function = self._functions[workload.uid]
            if function.workload is None or function.workload.revision != workload.revision:
                function.restore(workload)

    async def fail(self, uid: str, status: int, body: str) -> None:
        function = self._functions.pop(uid, None)
        if function is None:
            return
        await function.fail(listeners.error_response(status, body.encode()))
        await function.remove()

    async def touch(self, uid: str, in_flight: int) -> None:
        function = self._functions.get(uid)
        if function is not None:
            function.touch(in_flight)

    async def remove(self, uids: list[str]) -> dict[str, list[protocol.Message]]:
        """Continues past errors; they are in the lists as resources of type "error"."""

        async def one(uid: str) -> list[base.Resource]:
            function = self._functions.get(uid)
            try:
                removed = await function.remove() if function else []
                self._functions.pop(uid, None)
                path = listeners.socket_path(self._sockets, uid)
                if path.exists():
                    path.unlink()
                    removed.append(base.Resource("socket", f"unix:{path}", uid, "listening"))
            except OSError as error:
                return [base.Resource("error", uid, uid, str(error))]
            return removed

        results = await asyncio.gather(*(one(uid) for uid in uids))
        return {
            uid: [protocol.resource_to_json(each) for each in removed]
            for uid, removed in zip(uids, results, strict=True)
        }

    async def list_resources(self) -> list[protocol.Message]:
        found = residue.find_all(self._data_dir, self._sockets)
        known = [
            base.Resource("socket", function.listener.address, uid, "listening socket")
            for uid, function in self._functions.items()
            if function.listener.is_open() and function.listener.port is not None
        ]
        return [protocol.resource_to_json(each) for each in (*found, *known)]

    async def remove_resource(self, resource: protocol.Message) -> None:
        value = protocol.resource_from_json(resource)
        if value.type == "socket" and value.uid in self._functions:
            await self.remove([value.uid])
            return
        residue.remove(value, self._data_dir, self._sockets)

    # Instances

    async def launch(self, function: Function, workload: base.Workload, hooks: Hooks) -> Instance:
        self._count += 1
        name = f"{workload.uid}-{workload.revision}-{self._count}"
        slot = self._slots.pop() if self._slots else self._take_slot()
        place = Place(
            slot=slot,
            identity=self._first_uid + slot if self._is_root else None,
            scratch_bytes=self._scratch_of(workload),
            public_ports=frozenset(self._settings.public_ports),
        )
        instance = Instance(workload, function.listener, place, name, hooks)
        function.instances.append(instance)
        self._instances[name] = instance
        try:
            interpreter = find_interpreter(workload, self._settings.interpreter)
            zygote = await self._zygote(interpreter)
            child = await zygote.child()
            self._owners[name] = (zygote, child.number)
            self._by_child[zygote, child.number] = instance
            try:
                instance.launch(child)
            except BaseException:
                child.discard()
                raise
        except BaseException:
            function.instances.remove(instance)
            instance.abandon()
            self.release(instance)
            raise
        return instance

    def _scratch_of(self, workload: base.Workload) -> int | None:
        """None: as its zygote has made it."""
        limit = workload.limits.memory_bytes
        return limit if limit < self._settings.scratch_bytes else None

    def _take_slot(self) -> int:
        self._next_slot += 1
        if self._next_slot >= _UID_BLOCK:
            raise OSError("more instances than users set aside for them")
        return self._next_slot

    def release(self, instance: Instance) -> None:
        if self._instances.pop(instance.name, None) is not None:
            self._slots.append(instance.place.slot)
            owner = self._owners.pop(instance.name, None)
            if owner is not None:
                self._by_child.pop(owner, None)

    async def _zygote(self, interpreter: str) -> Zygote:
        """The running zygote of an interpreter, or a new one. Raises ZygoteFailed."""
        known = self._zygotes.get(interpreter)
        if known is not None and (not known.done() or self._is_usable(known)):
            return await asyncio.shield(known)
        started = asyncio.ensure_future(
            Zygote.start(
                Path(interpreter),
                root=self._root,
                data_dir=self._data_dir,
                marker=self._marker,
                scratch_bytes=self._settings.scratch_bytes,
                exited=self._on_exited,
                lost=self._on_lost,
            )
        )
        self._zygotes[interpreter] = started
        return await asyncio.shield(started)

    def _is_usable(self, future: asyncio.Future[Zygote]) -> bool:
        return not future.cancelled() and future.exception() is None and future.result().alive

    def _on_exited(self, zygote: Zygote, number: int, code: int) -> None:
        instance = self._by_child.get((zygote, number))
        if instance is not None:
            instance.on_exit(code)

    def _on_lost(self, zygote: Zygote) -> None:
        """The kernel ends all of its instances, which live in its pid namespace."""
        for name, (owner, _number) in list(self._owners.items()):
            if owner is zygote and (instance := self._instances.get(name)) is not None:
                instance.lose()

    async def _watch_memory(self) -> None:
        """End instances whose processes together use more than they may."""
        while True:
            await asyncio.sleep(_MEMORY_CHECK * (1 + len(self._instances) // 50))
            for instance in list(self._instances.values()):
                limit = instance.workload.limits.memory_bytes
                if instance.pid > 0 and memory.instance_bytes(instance.pid, limit) > limit:
                    text = f"used more than {limit >> 20} MiB of memory; ended"
                    self.notify(
                        base.LogLine(
                            instance.workload.uid, instance.name, "platform", time.time(), text
                        )
                    )
                    instance.kill("memory")

    async def _watch_zygotes(self) -> None:
        """End those whose interpreter no function has used for a while, but for the default."""
        unused: dict[str, float] = {}
        while True:
            await asyncio.sleep(self._settings.zygote_idle / 10)
            now = time.monotonic()
            wanted = {
                find_interpreter(function.workload, self._settings.interpreter)
                for function in self._functions.values()
                if function.workload is not None
            }
            for interpreter in [*self._zygotes]:
                future = self._zygotes[interpreter]
                if interpreter in wanted or interpreter == self._settings.interpreter:
                    unused.pop(interpreter, None)
                elif not future.done():
                    continue
                elif not self._is_usable(future):
                    del self._zygotes[interpreter]
                elif (
                    now - unused.setdefault(interpreter, now) >= self._settings.zygote_idle
                    and not future.result().is_used
                ):
                    del self._zygotes[interpreter]
                    future.result().close()
                    unused.pop(interpreter)

    def connections(self, port: int, *, fresh: bool = False) -> Count:
        """Those of a local port; not `fresh`: as they were a moment ago, one look for all."""
        now = time.monotonic()
        if fresh or now - self._connections[0] > _CONNECTIONS_VALID:
            self._connections = (now, read_table())
        return self._connections[1].get(port, Count())

    def _background(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            sys.stderr.write(f"supervisor: {type(error).__name__}: {error}\n")


def enter_namespaces() -> bool:
    """Mounts of its own; without root, as the root of a user namespace. Whether it was root."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        kernel.unshare(kernel.CLONE_NEWNS)
    else:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        maps = (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"))
        for name, text in maps:
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    rootfs.make_private()
    return uid == 0


def raise_file_limit() -> None:
    """Every function has a listening socket here, every instance about six descriptors."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def take_lock(data_dir: Path) -> int | None:
    """A descriptor that holds the lock while it is open; None when another has it."""
    home = data_dir / "process"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(home / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


async def _run(settings: Settings, is_root: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Supervisor(settings, is_root).serve(stop)


def main(arguments: list[str]) -> int:
    settings = Settings(**json.loads(arguments[0]))
    if settings.parent:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != settings.parent:
            return 0
    lock = take_lock(Path(settings.data_dir))
    if lock is None:
        return EXIT_LOCKED
    raise_file_limit()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    is_root = enter_namespaces()
    if settings.parent:
        # Changing the user namespace clears it.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(_run(settings, is_root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
