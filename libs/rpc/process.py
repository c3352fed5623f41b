"""The frame of a service's process: settings, signals, exit status."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

SettingsT = TypeVar("SettingsT", bound=BaseSettings)

EXIT_SETTINGS = 2
EXIT_START = 3


class StartError(Exception):
    """The service cannot start here; the message says why and what to change."""

    status = EXIT_START


class SettingsError(StartError):
    """A setting is wrong; the message names it."""

    status = EXIT_SETTINGS


def load(settings: type[SettingsT]) -> SettingsT:
    """Read settings from the environment; exit with status 2 and a line a wrong one."""
    prefix = str(settings.model_config.get("env_prefix") or "")
    try:
        loaded = settings()
    except ValidationError as error:
        sys.stderr.writelines(f"{line}\n" for line in explain(error, prefix))
        sys.exit(EXIT_SETTINGS)
    return loaded


def explain(error: ValidationError, prefix: str) -> list[str]:
    """Return a line for each setting that is wrong. Example: "MAYFLY_PORT: not a number"."""
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
        given = problem.get("input")
        shown = "" if isinstance(given, dict) else f" (it is {given!r})"
        lines.append(f"{name}: {problem['msg']}{shown}")
    return lines


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main` until it returns; SIGTERM and SIGINT set the event that it is given.

    A second signal ends the process at once. `StartError` is printed and exits with
    status 3, `SettingsError` with 2.
    """
    try:
        asyncio.run(_until_signalled(main))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.status)


async def _until_signalled(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await main(stop)
