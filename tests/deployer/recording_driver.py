"""A driver that keeps real listening sockets and answers on them inside the test's process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.deployer.drivers.base import (
    ArtefactLost,
    BecameActive,
    BecameIdle,
    Deployed,
    DeployFailed,
    Early,
    Endpoint,
    EndpointMoved,
    InstanceStarted,
    LogLine,
    Notification,
    Resource,
    SupervisorLost,
    Wanted,
    Workload,
)


@dataclass
class _Function:
    listener: socket.socket
    address: str
    server: asyncio.Server | None = None
    workload: Workload | None = None


@dataclass
class RecordingDriver:
    """Artefacts whose directory holds `deploy_fails.json` fail with what it says."""

    directory: Path
    functions: dict[str, _Function] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    queue: asyncio.Queue[Notification] = field(default_factory=asyncio.Queue)
    removable: bool = True
    """False: `remove` raises."""
    gate: asyncio.Event | None = None
    """Deploys wait for it when it is set to an event."""
    fail_gate: asyncio.Event | None = None
    """`fail` waits for it when it is set to an event."""
    ingress: str = ""
    """Where all functions are reached, by their hosts; told before the deploy is over."""
    reserves: bool = True
    shared: bool = False

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)

    async def close(self) -> None:
        for uid in list(self.functions):
            await self._close(uid)

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> Endpoint:
        self.calls.append(("reserve", uid))
        if uid not in self.functions:
            self.functions[uid] = self._listen(uid, kind, address_hint)
        return Endpoint(self.functions[uid].address)

    def _listen(self, uid: str, kind: str, hint: str | None) -> _Function:
        if kind == "script":
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", int(hint.rpartition(":")[2]) if hint else 0))
            address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        else:
            path = self.directory / f"{uid}.sock"
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            address = f"unix:{path}"
        listener.listen(64)
        listener.setblocking(False)
        return _Function(listener, address)

    async def deploy(self, workload: Workload, early: Early | None = None) -> Deployed:
        self.calls.append(("deploy", workload.uid))
        if self.ingress and early is not None:
            early(Endpoint(self.ingress, host=workload.uid))
        if self.gate is not None:
            await self.gate.wait()
        assert workload.artefact_dir is not None
        failing = workload.artefact_dir / "deploy_fails.json"
        if failing.exists():
            raise DeployFailed(**json.loads(failing.read_text()))
        if not self.reserves and workload.uid not in self.functions:
            self.functions[workload.uid] = self._listen(workload.uid, "script", None)
        await self._serve(workload)
        endpoint = None if self.reserves else Endpoint(self.functions[workload.uid].address)
        if self.ingress:
            endpoint = Endpoint(self.ingress, host=workload.uid)
        return Deployed("instance-1", 1_363_148, 0.001, endpoint)

    async def _serve(self, workload: Workload) -> None:
        function = self.functions[workload.uid]
        function.workload = workload
        assert workload.artefact_dir is not None
        body = (workload.artefact_dir / workload.entry).read_bytes()
        await self._answer(function, 200, body)

    async def _answer(self, function: _Function, status: int, body: bytes) -> None:
        if function.server is not None:
            function.server.close()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
            await writer.drain()
            writer.close()

        duplicate = function.listener.dup()
        function.server = await asyncio.start_server(handle, sock=duplicate)

    async def restore(
        self, workloads: Sequence[Workload], endpoints: Mapping[str, Endpoint]
    ) -> None:
        for workload in workloads:
            self.calls.append(("restore", workload.uid))
            if not self.reserves:
                continue
            hint = endpoints[workload.uid].address
            if workload.uid not in self.functions:
                self.functions[workload.uid] = self._listen(workload.uid, workload.kind, hint)
            assert self.functions[workload.uid].address == hint
            await self._serve(workload)

    async def settle(self, uid: str, revision: int) -> None:
        self.calls.append((f"settle {revision}", uid))

    async def wake(self, uid: str) -> None:
        self.calls.append(("wake", uid))

    async def sleep(self, uid: str) -> None:
        self.calls.append(("sleep", uid))

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        self.calls.append(("fail", uid))
        if self.fail_gate is not None:
            await self.fail_gate.wait()
            self.calls.append(("failed", uid))
        if not self.reserves:
            await self._close(uid)
            return
        await self._answer(self.functions[uid], status, body)

    async def touch(self, uid: str, in_flight: int) -> None:
        self.calls.append((f"touch {in_flight}", uid))

    async def remove(self, uids: Sequence[str]) -> dict[str, list[Resource]]:
        if not self.removable:
            raise OSError("device is busy")
        removed: dict[str, list[Resource]] = {}
        for uid in uids:
            self.calls.append(("remove", uid))
            function = await self._close(uid)
            removed[uid] = (
                [Resource("socket", function.address, uid, "")] if function is not None else []
            )
        return removed

    async def _close(self, uid: str) -> _Function | None:
        function = self.functions.pop(uid, None)
        if function is not None:
            if function.server is not None:
                function.server.close()
            function.listener.close()
            (self.directory / f"{uid}.sock").unlink(missing_ok=True)
        return function

    async def notifications(self, wanted: Wanted) -> AsyncGenerator[Notification]:
        while True:
            yield await self.queue.get()

    async def list_resources(self) -> list[Resource]:
        paths = sorted(self.directory.glob("*.sock"))
        return [Resource("socket", str(path), path.stem, "found") for path in paths]

    async def remove_resource(self, resource: Resource) -> None:
        os.unlink(resource.id)

    def print_line(self, uid: str, text: str, when: float) -> None:
        """Say that a function wrote a line."""
        self.queue.put_nowait(LogLine(uid, "instance-1", "stdout", when, text))

    def start_instance(self, uid: str, instance: str) -> None:
        """Say that an instance is up."""
        self.queue.put_nowait(InstanceStarted(uid, instance, 1, 0.001))

    def idle(self, uid: str) -> None:
        """Say that nothing runs any more."""
        self.queue.put_nowait(BecameIdle(uid))

    def active(self, uid: str) -> None:
        """Say that something runs again."""
        self.queue.put_nowait(BecameActive(uid))

    def move(self, uid: str, endpoint: Endpoint) -> None:
        """Say that a function is reached elsewhere now."""
        self.queue.put_nowait(EndpointMoved(uid, endpoint))

    def lose_artefact(self, uid: str) -> None:
        """Say that what a function runs from is gone."""
        self.queue.put_nowait(ArtefactLost(uid, "the image is gone"))

    async def lose_everything(self) -> None:
        """Be as a driver whose supervisor was killed."""
        await self.close()
        self.queue.put_nowait(SupervisorLost("killed"))
