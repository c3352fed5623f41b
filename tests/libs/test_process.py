"""libs.rpc.process: settings refused by name, signals, and children that end with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.childprocess import spawn
from libs.rpc.process import EXIT_SETTINGS, load


class Settings(BaseSettings):
    """One setting."""

    model_config = SettingsConfigDict(env_prefix="MAYFLY_")

    port: int = 1


def test_a_wrong_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAYFLY_PORT", "many")
    with pytest.raises(SystemExit) as caught:
        load(Settings)
    assert caught.value.code == EXIT_SETTINGS
    assert capsys.readouterr().err.startswith("MAYFLY_PORT: ")


PARENT = """
import asyncio, sys
from libs.childprocess import spawn
async def main():
    child = await spawn(["/bin/sleep", "300"])
    print(child.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as output:
        child = int(output.readline())
    # The launcher has become the program itself, so the death signal is set.
    wait_until(lambda: b"sleep" in command_of(child))
    parent.kill()
    parent.wait()
    wait_until(lambda: not command_of(child))


async def test_a_child_that_ignores_its_signal_is_killed() -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    read, write = os.pipe()
    child = await spawn([sys.executable, "-c", f"{script}; time.sleep(300)"], output=write)
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 1) == b"1"
    assert await child.stop(signal.SIGTERM, grace=0.05) == -signal.SIGKILL
    os.close(read)


def command_of(pid: int) -> bytes:
    """Return a process's command line; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_until(holds: object, seconds: float = 10) -> None:
    """Return once `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition did not come true in time"
