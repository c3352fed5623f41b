"""The deployer's side: finds or starts the supervisor and speaks with it.

Safe in a process that runs grpc.aio: nothing here forks (subprocess starts a program directly).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import services
from services.deployer.drivers import base
from services.deployer.drivers.process import protocol
from services.deployer.drivers.process.supervisor import EXIT_LOCKED, Settings

_START_SECONDS = 20.0
_RETRY_SECONDS = 0.01
_CALL_SECONDS = 30.0
_MAX_NOTIFICATIONS = 50_000
_REPOSITORY = Path(services.__file__).resolve().parent.parent


class SupervisorUnavailable(base.DriverUnavailable):
    """The supervisor is gone, cannot be started or does not answer."""


class ProcessDriver:
    """Implements `base.Driver`. One per deployer; several may share a data directory.

    data_dir: the platform's, absolute. interpreter: that of most handlers, kept warm; by
    default the platform's own. public_ports: the gateway's, which functions may connect to.
    """

    reserves = True
    shared = False

    def __init__(
        self,
        data_dir: Path,
        *,
        interpreter: Path | None = None,
        public_ports: Sequence[int] = (),
        scratch_bytes: int = 64 << 20,
        zygote_idle: float = 300.0,
    ) -> None:
        self._settings = Settings(
            data_dir=str(data_dir.absolute()),
            interpreter=str(interpreter or _own_interpreter()),
            public_ports=tuple(public_ports),
            scratch_bytes=scratch_bytes,
            parent=os.getpid(),
            zygote_idle=zygote_idle,
        )
        self._socket = data_dir.absolute() / "process" / "supervisor.sock"
        self._child: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._connecting = asyncio.Lock()
        self._notifications: asyncio.Queue[base.Notification] = asyncio.Queue(_MAX_NOTIFICATIONS)
        self._closing = False

    async def start(self) -> None:
        """Connect to the supervisor, starting it where there is none.

        Raises SupervisorUnavailable. After SupervisorLost it is called by the next use.
        """
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return
            reader, self._writer = await self._connect()
            self._reading = asyncio.create_task(self._read(reader))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        while True:
            try:
                return await self._greeted()
            except (FileNotFoundError, ConnectionError) as error:
                if loop.time() > deadline:
                    raise SupervisorUnavailable(f"{self._socket}: {error}") from error
            self._ensure_child()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _greeted(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a supervisor that serves. One that is dying still accepts."""
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=protocol.MAX_LINE)
        try:
            if not await reader.readline():
                raise ConnectionResetError("it ended")
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def _ensure_child(self) -> None:
        """Start a supervisor; it ends by itself where another one has the lock."""
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            if code not in (EXIT_LOCKED, -9, -15, 0):
                self._child = None
                raise SupervisorUnavailable(f"the supervisor ended with code {code}; see its log")
        environment = dict(os.environ)
        environment["PYTHONPATH"] = str(_REPOSITORY)
        self._child = subprocess.Popen(
            [
                sys.executable,
                *("-m", "services.deployer.drivers.process.supervisor"),
                json.dumps(asdict(self._settings)),
            ],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    async def close(self) -> None:
        """End the supervisor if it is this driver's, and with it all instances."""
        self._closing = True
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            await ended(self._child)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
            reason = "it ended"
        except (OSError, ValueError) as error:
            reason = str(error)
        if self._writer is not None:
            self._writer.close()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(SupervisorUnavailable(f"the supervisor: {reason}"))
        if not self._closing:
            self._announce(base.SupervisorLost(reason))

    def _take(self, message: protocol.Message) -> None:
        if "notification" in message:
            self._announce(protocol.notification_from_json(message))
            return
        future = self._calls.pop(message["id"], None)
        if future is None or future.done():
            return
        error = message.get("error")
        if error is None:
            future.set_result(message["result"])
        elif "deploy_failed" in error:
            future.set_exception(protocol.failure_from_json(error["deploy_failed"]))
        else:
            future.set_exception(SupervisorUnavailable(error["message"]))

    def _announce(self, notification: base.Notification) -> None:
        """Log lines make room for what is not told again."""
        if self._notifications.full():
            if isinstance(notification, base.LogLine):
                return
            self._notifications.get_nowait()
        self._notifications.put_nowait(notification)

    async def _call(self, method: str, *, seconds: float = _CALL_SECONDS, **params: Any) -> Any:
        await self.start()
        writer = self._writer
        assert writer is not None
        number = next(self._ids)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(protocol.encode({"id": number, "method": method, "params": params}))
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise SupervisorUnavailable(f"{method} took longer than {seconds:g} s") from None
        finally:
            self._calls.pop(number, None)

    async def reserve(self, uid: str, kind: str, address_hint: str | None) -> base.Endpoint:
        return base.Endpoint(
            await self._call("reserve", uid=uid, kind=kind, address_hint=address_hint)
        )

    async def deploy(
        self, workload: base.Workload, early: base.Early | None = None
    ) -> base.Deployed:
        result = await self._call(
            "deploy",
            seconds=workload.start_timeout + _CALL_SECONDS,
            workload=protocol.workload_to_json(workload),
        )
        return base.Deployed(**result)

    async def restore(
        self, workloads: Sequence[base.Workload], endpoints: Mapping[str, base.Endpoint]
    ) -> None:
        for start in range(0, len(workloads), 500):
            part = workloads[start : start + 500]
            await self._call(
                "restore",
                workloads=[protocol.workload_to_json(workload) for workload in part],
                endpoints={
                    workload.uid: endpoints[workload.uid].address
                    for workload in part
                    if workload.uid in endpoints
                },
            )

    async def settle(self, uid: str, revision: int) -> None:
        """Nothing to do: the socket stays, and the supervisor has ended the older revision."""

    async def wake(self, uid: str) -> None:
        """Nothing to do: a connection to the socket wakes it."""

    async def sleep(self, uid: str) -> None:
        """Nothing to do: the supervisor sees by itself what is unused."""

    async def fail(self, uid: str, status: int, body: bytes) -> None:
        await self._call("fail", uid=uid, status=status, body=body.decode())

    async def touch(self, uid: str, in_flight: int) -> None:
        await self._call("touch", uid=uid, in_flight=in_flight)

    async def remove(self, uids: Sequence[str]) -> dict[str, list[base.Resource]]:
        result = await self._call("remove", uids=list(uids))
        return {
            uid: [protocol.resource_from_json(each) for each in removed]
            for uid, removed in result.items()
        }

    async def notifications(self, wanted: base.Wanted) -> AsyncGenerator[base.Notification]:
        while True:
            yield await self._notifications.get()

    async def list_resources(self) -> list[base.Resource]:
        return [protocol.resource_from_json(each) for each in await self._call("list_resources")]

    async def remove_resource(self, resource: base.Resource) -> None:
        await self._call("remove_resource", resource=protocol.resource_to_json(resource))


async def ended(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child by its descriptor, without a thread."""
    pidfd = os.pidfd_open(child.pid)
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    child.wait()


def _own_interpreter() -> str:
    """The real interpreter behind this one's environment."""
    return os.path.realpath(sys.executable)
