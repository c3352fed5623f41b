"""The looker sees what it is there to see: each thing is put up, seen, taken away, gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.faults.platforms import new_looker
from tests.faults.world import Looker

WAIT = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def looker(data_dir: Path) -> Looker:
    """A looker on a directory that nobody uses."""
    data_dir.mkdir()
    return new_looker(data_dir)


@contextmanager
def child(*command: str, **environment: str) -> Iterator[int]:
    """Run a command that says when it is up and ends with its input."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environment},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@contextmanager
def by_mark(looker: Looker) -> Iterator[str]:
    name, _, value = looker.mark.partition("=")
    with child(sys.executable, "-c", WAIT, **{name: value}):
        yield "environment"


@contextmanager
def by_command(looker: Looker) -> Iterator[str]:
    with child(sys.executable, "-c", WAIT, str(looker.data_dir / "x")):
        yield "command"


@contextmanager
def by_function(looker: Looker) -> Iterator[str]:
    looker.uids.add("0123456789abcdef")
    with child(sys.executable, "-c", WAIT, MAYFLY_INSTANCE="0123456789abcdef"):
        yield "function 0123456789abcdef"


@contextmanager
def by_mount(looker: Looker) -> Iterator[str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare (util-linux) on PATH")
    script = 'mount --bind "$0" /mnt && echo up && exec env -i cat'
    command = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", script]
    # By its working directory the path is in neither command nor environment.
    with subprocess.Popen(
        [*command, "."], cwd=looker.data_dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no user namespaces for this user here")
        yield "mounts"
        process.kill()


@contextmanager
def descendant(looker: Looker) -> Iterator[str]:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAIT!r}], env={{}})"
    name, _, value = looker.mark.partition("=")
    with child(sys.executable, "-c", code, **{name: value}) as pid:
        yield "descendant"
        subprocess.run(["kill", *map(str, _children(pid))], check=False)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("put_up", [by_mark, by_command, by_function, by_mount, descendant])
def test_processes_are_seen(
    looker: Looker, put_up: Callable[[Looker], AbstractContextManager[str]]
) -> None:
    assert looker.look().is_empty
    with put_up(looker) as why:
        world = looker.look()
        assert why in {p.why for p in world.processes}, world.describe()
    looker.wait_empty(5)


def test_namespaces_are_seen(looker: Looker) -> None:
    assert looker.look().namespaces == ()
    with by_mount(looker):
        assert any(entry.startswith("mnt ") for entry in looker.look().namespaces)
    looker.wait_empty(5)


def test_sockets_are_seen(looker: Looker) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(looker.data_dir / "s.sock"))
        listener.listen()
        assert looker.look().sockets == (str(looker.data_dir / "s.sock"),)
    assert looker.look().sockets == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_mounts_are_seen(looker: Looker) -> None:
    target = looker.data_dir / "m"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
    try:
        assert looker.look().mounts == (str(target),)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert looker.look().is_empty


def test_a_wait_that_fails_says_what_there_is(looker: Looker) -> None:
    with by_command(looker), pytest.raises(AssertionError, match=str(looker.data_dir)):
        looker.wait_empty(0.2)
