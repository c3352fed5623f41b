"""The whole platform in one process: what `make run` starts."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

import services.builder.app
import services.deployer.app
import services.gateway.app
import services.janitor.app
from libs.rpc.process import StartError
from services.standalone.config import StandaloneSettings
from services.standalone.postgres import EmbeddedPostgres
from services.standalone.wiring import Wiring, wire

log = structlog.get_logger()

START_SECONDS = 60.0
STOP_SECONDS = 20.0

Serve = Callable[[asyncio.Event, Callable[[str], None]], Awaitable[None]]


async def serve(
    settings: StandaloneSettings, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Run until `stop` is set; call `ready` with the public URL once everything answers.

    Raises `StartError` when the data directory is in use or a part cannot start.
    """
    async with AsyncExitStack() as stack:
        lock = _lock(settings.data_dir)
        stack.callback(os.close, lock)
        database_url = settings.database_url
        if not database_url:
            postgres = EmbeddedPostgres(settings.data_dir / "postgres")
            stack.push_async_callback(postgres.stop)
            await postgres.start()
            database_url = postgres.dsn
        wiring = wire(settings, database_url)
        await _run_services(wiring, stop, ready)


async def _run_services(wiring: Wiring, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    # They start together and stop in the opposite order: the deployer last, because the others
    # send it their last spans.
    parts: dict[str, Serve] = {
        "deployer": lambda s, r: services.deployer.app.serve(wiring.deployer, s, r),
        "builder": lambda s, r: services.builder.app.serve(wiring.builder, s, r),
        "janitor": lambda s, r: services.janitor.app.serve(wiring.janitor, s, r),
        "gateway": lambda s, r: services.gateway.app.serve(wiring.gateway, s, r),
    }
    running: list[tuple[asyncio.Task[None], asyncio.Event]] = []
    starting: list[asyncio.Future[str]] = []
    loop = asyncio.get_running_loop()
    for name, part in parts.items():
        part_stop, part_ready = asyncio.Event(), loop.create_future()
        task = asyncio.ensure_future(part(part_stop, _settle(part_ready)))
        task.set_name(name)
        running.append((task, part_stop))
        starting.append(part_ready)
    tasks = [task for task, _ in running]
    try:
        all_ready = asyncio.gather(*starting)
        await _first_of(all_ready, *tasks, _wait(stop))
        if all_ready.done() and not all_ready.cancelled():
            ready(wiring.public_url)
            await _first_of(*tasks, _wait(stop))
        else:
            all_ready.cancel()
    finally:
        await _stop_in_reverse(running)
    for task in tasks:
        task.result()


def _settle(future: asyncio.Future[str]) -> Callable[[str], None]:
    def settle(address: str) -> None:
        if not future.done():
            future.set_result(address)

    return settle


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _first_of(*awaitables: Awaitable[object]) -> None:
    """Return when one of them has ended; those made here for waiting alone are cancelled."""
    futures = {asyncio.ensure_future(awaitable) for awaitable in awaitables}
    given = {awaitable for awaitable in awaitables if isinstance(awaitable, asyncio.Future)}
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in futures - given:
        future.cancel()


async def _stop_in_reverse(running: list[tuple[asyncio.Task[None], asyncio.Event]]) -> None:
    for task, part_stop in reversed(running):
        part_stop.set()
        done, _ = await asyncio.wait([task], timeout=STOP_SECONDS)
        if not done:
            log.error("service_does_not_stop", service=task.get_name())
            task.cancel()
            await asyncio.wait([task], timeout=STOP_SECONDS)


def _lock(data_dir: Path) -> int:
    """Take the data directory for this process; the kernel gives it back when the process ends."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Functions' users pass through it to what is theirs; nobody lists it.
        data_dir.chmod(0o711)
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"MAYFLY_DATA_DIR: cannot use {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise StartError(
            f"MAYFLY_DATA_DIR: {data_dir} is in use by another instance (process {owner.strip()}); "
            "stop it, or choose another directory"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
