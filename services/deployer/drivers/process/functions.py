"""One function: its listening socket, its revision and the instances that serve it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from services.deployer.drivers import base
from services.deployer.drivers.base import DeployFailed, Workload
from services.deployer.drivers.process import memory, scaling
from services.deployer.drivers.process.connections import Count
from services.deployer.drivers.process.instances import ZYGOTE_LOST, Hooks, Instance, Stream
from services.deployer.drivers.process.listeners import (
    Answerer,
    Listener,
    error_body,
    error_response,
)
from services.deployer.drivers.process.zygotes import ZygoteFailed, ZygoteLost

STOP_GRACE = 10.0
ELSEWHERE_GRACE = 3.0
_DRAIN_POLL = 0.05
_HEALTH_POLL = 0.1
_LOST_ZYGOTES = 3
"""How often a start is begun again because its zygote was lost."""


class _Interrupted(DeployFailed):
    """The start was ended by the loss of the zygote, and not by the function."""


class Host(Protocol):
    """What a function needs of the supervisor."""

    answerer: Answerer

    async def launch(self, function: Function, workload: Workload, hooks: Hooks) -> Instance: ...
    def release(self, instance: Instance) -> None: ...
    def notify(self, notification: base.Notification) -> None: ...
    async def renew_listener(self, function: Function) -> Listener: ...
    def connections(self, port: int, *, fresh: bool = False) -> Count: ...


class Function:
    def __init__(self, uid: str, listener: Listener, host: Host) -> None:
        self.uid = uid
        self.listener = listener
        self.workload: Workload | None = None
        self.instances: list[Instance] = []
        self.removed = False
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._deploying = asyncio.Lock()
        self._in_flight = 0
        self._touched = 0.0
        self._armed = False
        self._check: asyncio.TimerHandle | None = None
        self._pressure = 0
        self._starts_failed = 0
        self._not_before = 0.0
        self._idle_said = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._hooks = Hooks(log=self._on_log, ended=self._on_ended, draining=self._on_draining)

    # Deploying

    async def deploy(self, workload: Workload) -> base.Deployed:
        """Start one instance of a revision; when it is ready, older ones are replaced."""
        async with self._deploying:
            started = time.monotonic()
            self._disarm()
            try:
                instance = await self._start(workload)
            except BaseException:
                if self.workload is not None:
                    self._arm()
                raise
            self.workload = workload
            self._starts_failed, self._not_before = 0, 0.0
            for old in self.instances:
                if old is not instance and old.workload.revision != workload.revision:
                    self._spawn(self._replace(old))
            self._keep_minimum()
            self._arm()
            seconds = time.monotonic() - started
            return base.Deployed(instance.name, memory.private_bytes(instance.pid), seconds)

    def restore(self, workload: Workload) -> None:
        """Serve this revision; instances start with the next request."""
        self.workload = workload
        self._keep_minimum()
        self._arm()

    def _keep_minimum(self) -> None:
        if self.workload is not None:
            for _ in range(self.workload.min_instances - len(self._serving())):
                self._spawn(self._wake())

    async def _start(self, workload: Workload) -> Instance:
        """A ready instance. Raises DeployFailed.

        Again where the zygote was lost meanwhile: that is no fault of the function.
        """
        for _ in range(_LOST_ZYGOTES):
            with contextlib.suppress(_Interrupted):
                return await self._start_once(workload)
        return await self._start_once(workload)

    async def _start_once(self, workload: Workload) -> Instance:
        started = time.monotonic()
        try:
            instance = await self._host.launch(self, workload, self._hooks)
        except (OSError, ZygoteFailed) as error:
            kind = _Interrupted if isinstance(error, OSError | ZygoteLost) else DeployFailed
            raise kind(
                "INSTANCE_START_FAILED", str(error), "see `mayfly doctor`: the sandbox needs it"
            ) from error
        try:
            async with asyncio.timeout(workload.start_timeout):
                await self._until_ready(instance)
        except TimeoutError:
            instance.kill("start-timeout")
            raise self._start_timeout(instance) from None
        except BaseException:
            instance.kill("start-failed")
            raise
        if self.removed:
            instance.kill("removed")
            raise DeployFailed("INSTANCE_START_FAILED", "the function was removed", "deploy anew")
        seconds = time.monotonic() - started
        self._host.notify(base.InstanceStarted(self.uid, instance.name, workload.revision, seconds))
        if self._idle_said:
            self._idle_said = False
            self._host.notify(base.BecameActive(self.uid))
        self._watch(instance)
        return instance

    async def _until_ready(self, instance: Instance) -> None:
        if instance.workload.kind == "script":
            self._spawn(self._judge_ports(instance))
            if instance.workload.health is not None:
                self._spawn(self._judge_health(instance, instance.workload.health))
        await asyncio.wait({instance.ready, instance.exited}, return_when="FIRST_COMPLETED")
        if instance.ready.done() and not instance.ready.cancelled():
            instance.ready.result()
            return
        raise self._start_failed(instance, instance.exited.result())

    def _start_failed(self, instance: Instance, code: int) -> DeployFailed:
        tail = list(instance.tail)
        if instance.failure is not None:
            failure = instance.failure
            failure.log_tail = failure.log_tail or tail
            failure.exit_code = code
            return failure
        how = scaling.describe_exit(code)
        if instance.stop_reason == ZYGOTE_LOST:
            return _Interrupted(
                "INSTANCE_START_FAILED",
                "the process that it is forked from has ended",
                "deploy again; if it persists, see the logs of the deployer",
                tail,
                code,
            )
        if instance.workload.kind == "script":
            return DeployFailed(
                "SCRIPT_EXITED",
                f"the script ended before it listened: {how}",
                f"keep serving HTTP on port {instance.workload.port}; its last lines say more",
                tail,
                scaling.plain_exit(code),
            )
        return DeployFailed(
            "INSTANCE_START_FAILED", f"it ended while it started: {how}", "see its logs", tail, code
        )

    def _start_timeout(self, instance: Instance) -> DeployFailed:
        workload = instance.workload
        tail = list(instance.tail)
        seconds = f"{workload.start_timeout:g} s"
        if workload.kind != "script":
            return DeployFailed(
                "HANDLER_IMPORT_FAILED",
                f"importing the handler took longer than {seconds}",
                "do slow work in the handler, not while its module is imported",
                tail,
            )
        others = instance.listening - {workload.port}
        if workload.port not in instance.listening and others:
            return self._elsewhere(workload, others, tail)
        if workload.port in instance.listening and workload.health is not None:
            return DeployFailed(
                "HEALTH_CHECK_FAILED",
                f"{workload.health} did not answer 2xx within {seconds}",
                "answer 2xx on the health path, or leave `health` unset",
                tail,
            )
        return DeployFailed(
            "SCRIPT_NEVER_LISTENED",
            f"the script did not listen on port {workload.port} within {seconds}",
            f"listen on port {workload.port}, or on the one that PORT names",
            tail,
        )

    def _elsewhere(
        self, workload: Workload, others: frozenset[int], tail: list[str]
    ) -> DeployFailed:
        ports = ", ".join(str(port) for port in sorted(others))
        return DeployFailed(
            "SCRIPT_LISTENS_ELSEWHERE",
            f"the script listens on {ports}, not on {workload.port}",
            f"set `port = {min(others)}` in [tool.mayfly], or listen on the port that PORT names",
            tail,
        )

    async def _judge_ports(self, instance: Instance) -> None:
        """Give up early on a script that has opened other ports only."""
        heard = asyncio.ensure_future(instance.heard.wait())
        try:
            await asyncio.wait({heard, instance.exited}, return_when="FIRST_COMPLETED")
        finally:
            heard.cancel()
        await asyncio.wait({instance.ready, instance.exited}, timeout=ELSEWHERE_GRACE)
        workload = instance.workload
        if not instance.ready.done() and not instance.exited.done():
            others = instance.listening - {workload.port}
            if others and workload.port not in instance.listening:
                failure = self._elsewhere(workload, others, list(instance.tail))
                instance.ready.set_exception(failure)

    async def _judge_health(self, instance: Instance, path: str) -> None:
        port = self.listener.port
        while not instance.exited.done() and not instance.ready.done():
            if instance.workload.port in instance.listening and port is not None:
                status = await scaling.probe(port, path, _HEALTH_POLL * 50)
                if status is not None and 200 <= status < 300:
                    instance.declare_healthy()
                    return
            await asyncio.wait({instance.exited, instance.ready}, timeout=_HEALTH_POLL)

    # Load

    def _serving(self) -> list[Instance]:
        revision = self.workload.revision if self.workload else None
        return [
            instance
            for instance in self.instances
            if instance.state in ("starting", "ready") and instance.workload.revision == revision
        ]

    def _arm(self) -> None:
        """Look at the listening socket again."""
        if self._armed or self.removed or not self.listener.is_open():
            return
        wait = self._not_before - time.monotonic()
        if wait > 0 and not self._serving():
            if self._check is not None:
                self._check.cancel()
            self._check = self._loop.call_later(wait, self._arm)
        else:
            self._loop.add_reader(self.listener.socket, self._on_readable)
            self._armed = True

    def _disarm(self) -> None:
        if self._armed:
            self._loop.remove_reader(self.listener.socket)
            self._armed = False
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _on_readable(self) -> None:
        """Somebody waits. Level-triggered, so not looked at again before there is an answer."""
        self._disarm()
        if not self.listener.is_listening():
            self._spawn(self._mend())
        elif not self._serving():
            self._spawn(self._wake())
        else:
            self._pressure = 0
            self._look_later()

    def _look_later(self) -> None:
        if self.workload is None or self.removed:
            return
        at_most = len(self._serving()) >= self.workload.max_instances
        delay = scaling.CHECK_AT_MOST if at_most else scaling.CHECK
        self._check = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        """Whether those who waited a moment ago were taken; else one instance more."""
        self._check = None
        if self.workload is None or self.removed:
            return
        serving = self._serving()
        if not serving or not self.listener.has_waiting():
            self._arm()
            return
        self._pressure += 1
        if scaling.wants_more(self.workload, serving, self._pressure):
            self._pressure = 0
            self._spawn(self._wake())
        else:
            self._look_later()

    def touch(self, in_flight: int) -> None:
        """The gateway's count of open requests."""
        self._in_flight = in_flight
        self._touched = time.monotonic()
        workload = self.workload
        if workload is None or workload.kind != "script" or not self._serving():
            return
        wanted = min(workload.max_instances, -(-in_flight // workload.concurrency))
        for _ in range(wanted - len(self._serving())):
            self._spawn(self._wake())

    async def _wake(self) -> None:
        """Start one instance for those who wait."""
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        workload = self.workload
        if workload is None or self.removed:
            return
        if len(self._serving()) >= max(1, workload.max_instances):
            self._arm()
            return
        try:
            await self._start(workload)
        except DeployFailed as failure:
            if not self.removed:
                await self._after_failed_wake(failure)
        self._arm()

    async def _after_failed_wake(self, failure: DeployFailed) -> None:
        """Tell the log and those who wait; the next start waits longer each time."""
        self._put_off()
        self._log_platform("", f"could not start: {failure.reason}: {failure.message}")
        if self._serving():
            return
        body = error_body(503, failure.reason, failure.message, failure.fix)
        await self._answer_waiting(error_response(503, body))

    def _put_off(self) -> None:
        self._starts_failed += 1
        self._not_before = time.monotonic() + scaling.backoff(self._starts_failed)

    async def _mend(self) -> None:
        """An instance has shut the shared socket down: a new one, and new instances."""
        self._log_platform("", "the listening socket was shut down by the function; made anew")
        for instance in self._serving():
            instance.drain("socket")
            self._spawn(self._finish(instance, STOP_GRACE))
        self.listener = await self._host.renew_listener(self)
        self._arm()

    # Idle, overdue and ending instances

    def _watch(self, instance: Instance) -> None:
        self._loop.call_later(scaling.first_idle_check(instance), self._check_idle, instance)
        if instance.workload.kind != "script":
            self._loop.call_later(instance.workload.timeout, self._check_overdue, instance)

    def _check_idle(self, instance: Instance) -> None:
        if instance.state != "ready":
            return
        now = time.monotonic()
        if instance.workload.kind == "script":
            busy = self._in_flight > 0 and now - self._touched < scaling.TOUCH_VALID
            if busy or self._host.connections(self.listener.port or 0).open > 0:
                instance.last_used = now
        delay = scaling.idle_delay(instance, now)
        self._starts_failed = 0  # it has lasted
        if delay <= 0 and len(self._serving()) > instance.workload.min_instances:
            self._spawn(self._retire(instance))
            return
        self._loop.call_later(max(delay, 0.05), self._check_idle, instance)

    async def _retire(self, instance: Instance) -> None:
        """End an instance that nobody uses, without losing who comes at this moment."""
        if instance.workload.kind == "script" and not await self._stop_unused(instance):
            self._loop.call_later(scaling.first_idle_check(instance), self._check_idle, instance)
            return
        instance.drain("idle")
        await self._finish(instance, STOP_GRACE)

    async def _stop_unused(self, instance: Instance) -> bool:
        """Tell a script to end, unless it has just accepted a connection.

        A handler's server is asked to accept no more; a script knows nothing of it. So it is
        held, looked at, and let go with SIGTERM before any further instruction of its own. Who
        comes meanwhile stays in the accept queue for the next instance.
        """
        port = self.listener.port or 0
        held = await instance.hold()
        if self._host.connections(port, fresh=True).accepted > 0:
            instance.last_used = time.monotonic()
            instance.let_go(held, None)
            return False
        instance.let_go(held, signal.SIGTERM)
        return True

    async def _replace(self, instance: Instance) -> None:
        """End an older revision: what it has taken is finished."""
        instance.drain("replaced")
        if instance.workload.kind == "script":
            await self._finish(instance, STOP_GRACE)

    async def _finish(self, instance: Instance, grace: float) -> None:
        await asyncio.wait({instance.exited}, timeout=grace)
        instance.kill("killed")

    def _check_overdue(self, instance: Instance) -> None:
        if instance.state == "ended":
            return
        timeout = instance.workload.timeout
        now = time.monotonic()
        oldest = instance.oldest_request()
        if oldest is not None and now - oldest >= timeout:
            self._log_platform(
                instance.name,
                f"a request took longer than {timeout:g} s; this instance is replaced",
            )
            instance.drain("timeout")
            self._spawn(self._end_overdue(instance, now, "timeout"))
            return
        delay = timeout if oldest is None else oldest + timeout - now
        self._loop.call_later(max(delay, 0.01) + 0.005, self._check_overdue, instance)

    async def _end_overdue(self, instance: Instance, moment: float, reason: str) -> None:
        """Let the requests that still have time finish, then end it."""
        instance.stop_reason = reason
        timeout = instance.workload.timeout
        deadline = moment + timeout
        while time.monotonic() < deadline:
            in_time = instance.requests_since(time.monotonic() - timeout)
            overdue = instance.oldest_request()
            others = instance.connections - (1 if overdue is not None else 0)
            if in_time == 0 and others <= 0:
                break
            done, _ = await asyncio.wait({instance.exited}, timeout=_DRAIN_POLL)
            if done:
                return
        instance.kill(reason)

    def _on_draining(self, instance: Instance, reason: str) -> None:
        """It says itself that it cannot go on."""
        if instance.state == "ended":
            return
        self._log_platform(instance.name, f"this instance is replaced: {reason}")
        instance.drain(reason)
        self._spawn(self._end_overdue(instance, time.monotonic(), reason))

    def _on_ended(self, instance: Instance) -> None:
        with contextlib.suppress(ValueError):
            self.instances.remove(instance)
        self._host.release(instance)
        code = instance.exited.result()
        reason = instance.stop_reason or "exited"
        was_ready = instance.ready.done() and not instance.ready.cancelled()
        if was_ready and not instance.ready.exception():
            if reason == "exited" and time.monotonic() - instance.started_at < scaling.EARLY_END:
                self._put_off()
            if reason == "exited":
                self._log_platform(
                    instance.name, f"it ended by itself: {scaling.describe_exit(code)}"
                )
            self._host.notify(base.InstanceStopped(self.uid, instance.name, reason, code))
        if self.removed or self.workload is None:
            return
        if not self._serving() and not self._deploying.locked():
            if not self.instances and not self._idle_said:
                self._idle_said = True
                self._host.notify(base.BecameIdle(self.uid))
            self._keep_minimum()
            self._arm()

    # Ending the function

    async def fail(self, response: bytes) -> int:
        """End all instances, answer all who wait, and listen no more. Returns how many waited."""
        self.removed = True
        self._disarm()
        for instance in self.instances:
            instance.kill("removed")
        count = await self._answer_waiting(response)
        self.listener.close()
        return count

    async def _answer_waiting(self, response: bytes) -> int:
        """Answer all who wait, once no program of the function's holds the socket any more.

        Whether the socket blocks is decided in the description that all holders share: a program
        that makes it blocking between our look and our accept would stop the supervisor.
        """
        ending = {i.exited for i in self.instances if not i.exited.done()}
        if ending:
            _, alive = await asyncio.wait(ending, timeout=STOP_GRACE)
            if alive:
                return 0
        return self._host.answerer.answer_waiting(self.listener, response)

    async def remove(self) -> list[base.Resource]:
        """End everything at once; what was removed."""
        self.removed = True
        self._disarm()
        removed: list[base.Resource] = []
        doomed = [instance for instance in self.instances if instance.state != "ended"]
        for instance in doomed:
            instance.kill("removed")
            removed.append(
                base.Resource("process", str(instance.pid), self.uid, f"instance {instance.name}")
            )
        if self.listener.is_open():
            removed.append(base.Resource("socket", self.listener.address, self.uid, "listening"))
            self.listener.close()
        if doomed:
            await asyncio.wait({instance.exited for instance in doomed}, timeout=STOP_GRACE)
        for task in list(self._tasks):
            task.cancel()
        return removed

    # Telling

    def _on_log(self, instance: Instance, stream: Stream, text: str) -> None:
        self._host.notify(base.LogLine(self.uid, instance.name, stream, time.time(), text))

    def _log_platform(self, instance: str, text: str) -> None:
        kind: Literal["platform"] = "platform"
        self._host.notify(base.LogLine(self.uid, instance, kind, time.time(), text))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log_platform("", f"a fault of the supervisor: {type(error).__name__}: {error}")
            report: Callable[[dict[str, object]], None] = self._loop.call_exception_handler
            report({"message": "function task failed", "exception": error})
