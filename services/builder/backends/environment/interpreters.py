"""The Python interpreters of this machine: found, asked once, chosen by `requires-python`."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from services.builder.backends.environment.programs import run
from services.builder.failures import BuildFailed

log = structlog.get_logger()

OLDEST = (3, 9)
_NAME = re.compile(r"python3(\.\d+)?")
_LOOK_AGAIN_SECONDS = 30.0
_PROBE_SECONDS = 10.0
_PROBES_AT_ONCE = 2
_PROBE = (
    "import json,os,sys;print(json.dumps([sys.implementation.name,'%d.%d.%d'%sys.version_info[:3],"
    "sys.version_info[3],sys.prefix==sys.base_prefix,sys.maxsize>2**32]))"
)


@dataclass(frozen=True)
class Interpreter:
    """`path` is absolute and free of links. Example version: "3.12.1"."""

    path: str
    version: str

    @property
    def identity(self) -> str:
        """What tells it from others, in digests."""
        return f"{self.version} {self.path}"

    @property
    def release(self) -> tuple[int, int]:
        """Its major and minor version."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)


@dataclass(frozen=True)
class _Answer:
    interpreter: Interpreter | None
    why_not: str = ""


Install = Callable[[str, Callable[[str], None]], Awaitable[None]]


@functools.cache
def own() -> Interpreter:
    """Return the interpreter that runs the platform: it works, and handlers are quickest in it."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Interpreter(os.path.realpath(sys.executable), version)


class Interpreters:
    """Finds interpreters; each file is asked once, however often it is found."""

    def __init__(
        self, environ: Mapping[str, str], installed: Path, install: Install | None
    ) -> None:
        """`installed` is where `install` (None: not wanted) puts those that it downloads."""
        self._environ = environ
        self._installed = installed
        self._install = install
        self._answers: dict[tuple[str, int, int], _Answer] = {}
        self._found: Sequence[Interpreter] = (own(),)
        self._missing: Mapping[str, str] = {}
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def found(self, *, again: bool = False) -> Sequence[Interpreter]:
        """Return all that work, the platform's own first, then the newest first."""
        now = asyncio.get_running_loop().time()
        async with self._lock:
            if again or now >= self._until:
                await self._look()
                self._until = asyncio.get_running_loop().time() + _LOOK_AGAIN_SECONDS
        return self._found

    async def choose(
        self, requires_python: str, say: Callable[[str], None], line: int = 0
    ) -> Interpreter:
        """Return the platform's own if it satisfies, else the newest that does.

        Downloads one where none does and that is wanted. Raises `BuildFailed`.
        """
        wanted = SpecifierSet(requires_python)
        first = own()
        if satisfies(first, wanted):
            return first
        if chosen := best(await self.found(), wanted):
            return chosen
        said = ""
        if self._install is not None:
            said = await self._try_install(requires_python, say)
            if chosen := best(await self.found(again=True), wanted):
                return chosen
        raise BuildFailed(
            "PYTHON_UNSATISFIABLE",
            f"no Python here satisfies requires-python {requires_python!r}; found: "
            + listed(self._found)
            + self._broken()
            + (f". Downloading one failed: {said}" if said else ""),
            "relax requires-python to a version that was found, or ask the operator to install one",
            line=line,
        )

    async def _try_install(self, requires_python: str, say: Callable[[str], None]) -> str:
        assert self._install is not None
        say(f"no Python here satisfies {requires_python!r}; downloading one")
        try:
            await self._install(requires_python, say)
        except BuildFailed as error:
            return error.message
        return ""

    def _broken(self) -> str:
        if not self._missing:
            return ""
        told = "; ".join(f"{path}: {why}" for path, why in sorted(self._missing.items()))
        return f" (not usable: {told})"

    async def _look(self) -> None:
        paths = await asyncio.to_thread(_real_paths, self._environ, self._installed)
        limit = asyncio.Semaphore(_PROBES_AT_ONCE)
        first = own()
        answers = await asyncio.gather(
            *(self._ask(path, limit) for path in paths if path != first.path)
        )
        others = [answer.interpreter for answer in answers if answer.interpreter is not None]
        others.sort(key=lambda one: Version(one.version), reverse=True)
        self._found = (first, *others)
        names = [path for path in paths if path != first.path]
        self._missing = {
            path: answer.why_not
            for path, answer in zip(names, answers, strict=True)
            if answer.interpreter is None
        }

    async def _ask(self, path: str, limit: asyncio.Semaphore) -> _Answer:
        try:
            status = os.stat(path)
        except OSError as error:
            return _Answer(None, error.strerror or "unreadable")
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._answers:
            async with limit:
                self._answers[key] = await self._probe(path)
        return self._answers[key]

    async def _probe(self, path: str) -> _Answer:
        environ = {"PATH": self._environ.get("PATH", ""), "LANG": "C.UTF-8"}
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                done = await run([path, "-I", "-S", "-c", _PROBE], env=environ, cwd=Path("/"))
        except TimeoutError:
            answer = _Answer(None, "does not answer")
        except OSError as error:
            answer = _Answer(None, str(error))
        else:
            answer = read_probe(path, done.code, done.lines)
        if answer.interpreter is None:
            log.info("interpreter_skipped", path=path, why=answer.why_not)
        return answer


def read_probe(path: str, code: int, lines: Sequence[str]) -> _Answer:
    """Return what a probe's output says."""
    try:
        name, version, level, is_base, _ = json.loads(lines[-1])
        Version(version)
    except (IndexError, ValueError, TypeError, InvalidVersion):
        why = lines[-1] if lines else f"exit code {code}"
        return _Answer(None, why[:200])
    if name != "cpython":
        return _Answer(None, f"{name} instead of CPython")
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return _Answer(None, f"{version} is older than {OLDEST[0]}.{OLDEST[1]}")
    if level != "final":
        return _Answer(None, f"{version} {level} is no final release")
    if not is_base:
        return _Answer(None, "is a virtual environment's own")
    return _Answer(Interpreter(path, version))


def candidates(environ: Mapping[str, str], installed: Path) -> Iterable[Path]:
    """Yield paths that may be interpreters: on PATH, of pyenv, and of uv.

    pyenv's shims are left out: each starts a shell, and names versions that need not exist.
    """
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv")
    for name in environ.get("PATH", os.defpath).split(os.pathsep):
        directory = Path(name)
        if not directory.is_absolute() or directory.name == "shims":
            continue
        yield from _programs(directory)
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    roots = [pyenv / "versions", data / "uv" / "python", installed]
    if configured := environ.get("UV_PYTHON_INSTALL_DIR"):
        roots.append(Path(configured))
    for root in roots:
        for version in _entries(root):
            yield from _programs(root / version / "bin")


def _real_paths(environ: Mapping[str, str], installed: Path) -> list[str]:
    return sorted({os.path.realpath(path) for path in candidates(environ, installed)})


def _programs(directory: Path) -> Iterable[Path]:
    for name in _entries(directory):
        path = directory / name
        if _NAME.fullmatch(name) and os.access(path, os.X_OK):
            yield path


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []  # not there, or not ours to read: there is nothing to find in it


def satisfies(interpreter: Interpreter, wanted: SpecifierSet) -> bool:
    """Whether an interpreter is one that `requires-python` asks for."""
    return wanted.contains(interpreter.version)


def best(found: Iterable[Interpreter], wanted: SpecifierSet) -> Interpreter | None:
    """Return the newest that satisfies, None when none does."""
    fitting = [each for each in found if satisfies(each, wanted)]
    return max(fitting, key=lambda each: Version(each.version), default=None)


def listed(found: Iterable[Interpreter]) -> str:
    """Return them for a person. Example: "3.13.0 (/usr/bin/python3.13)"."""
    return ", ".join(f"{each.version} ({each.path})" for each in found)
