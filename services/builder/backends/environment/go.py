"""Go handlers: compiled with the template of runtimes/go around them, without a network."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.builder.backends.base import Order, Progress
from services.builder.backends.environment.programs import MARKER, Finished, run
from services.builder.backends.environment.threads import in_thread
from services.builder.failures import BuildFailed

PROGRAM = "function"
SOURCE = "function.go"
OLDEST = (1, 24)
EXAMPLE = """package function

func Handle(e Event, c Context) (any, error) {
	return map[string]string{"hi": e.Query["name"]}, nil
}
"""
_PREFIX = "mayfly_"
_VERSION = re.compile(r"go version go(\d+)\.(\d+)(\S*)")
_PACKAGE = re.compile(r"(?m)^(\s*package[ \t]+)([A-Za-z_]\w*)")
_SKIPPED = re.compile(r"(?s)\ufeff|\s+|//[^\n]*|/\*.*?\*/")
_PLACE = re.compile(r"^(?:vet: )?(?:\./)?([^\s:]+\.go):(\d+)(?::(\d+))?: (.*)$")
_PROBE_SECONDS = 10.0


class Go:
    """The Go toolchain of this machine, if there is one."""

    def __init__(
        self, program: str, environ: Mapping[str, str], cache: Path, template: Path, at_once: int
    ) -> None:
        """`program` is a path, or empty for what PATH has."""
        self._wanted = program
        self._operator = environ
        self._cache = cache
        self._template = template
        self._running = asyncio.Semaphore(at_once)
        self._versions: dict[str, tuple[str, str]] = {}

    async def version(self) -> tuple[str, str]:
        """Return (version, "") where it can be used, else ("", why not)."""
        program = self._program()
        if program is None:
            where = f"{self._wanted} is no program" if self._wanted else "no `go` is on PATH"
            return "", f"{where}; install Go {OLDEST[0]}.{OLDEST[1]} or newer, or set MAYFLY_GO"
        if program not in self._versions:
            self._versions[program] = await self._ask(program)
        return self._versions[program]

    async def fingerprint(self) -> str:
        """Return what decides a program besides its source. Raises `BuildFailed`."""
        version, why_not = await self.version()
        if why_not:
            raise BuildFailed("UNKNOWN_RUNTIME", f"go cannot be used here: {why_not}", why_not)
        return f"go {version} {template_digest(self._template)}"

    async def compile(self, order: Order, directory: Path, progress: Progress) -> None:
        """Compile the package in `directory` to `PROGRAM` in it. Raises `BuildFailed`."""
        program = self._program()
        if program is None:
            _, why_not = await self.version()
            raise BuildFailed("UNKNOWN_RUNTIME", f"go cannot be used here: {why_not}", why_not)
        own = await in_thread(prepare, directory, self._template)
        result = order.make_workspace() / PROGRAM
        vendored = (directory / "vendor" / "modules.txt").is_file()
        command = [program, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s"]
        command += [f"-mod={'vendor' if vendored else 'mod'}", "-o", str(result), "."]
        async with self._running:
            with progress.span("compile"):
                done = await run(
                    command,
                    env={**self._environ(order.workspace), MARKER: order.uid},
                    cwd=directory,
                    on_line=progress.log,
                )
        if done.code:
            raise explain(done, directory, own)

    def _program(self) -> str | None:
        return shutil.which(self._wanted or "go", path=self._operator.get("PATH"))

    async def _ask(self, program: str) -> tuple[str, str]:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                done = await run(
                    [program, "version"], env=self._environ(self._cache), cwd=Path("/")
                )
        except (OSError, TimeoutError) as error:
            return "", f"{program} does not run: {error or 'no answer'}"
        found = _VERSION.match(done.text)
        if done.code or found is None:
            return "", f"{program} does not run: {done.text[-200:]}"
        version = f"{found[1]}.{found[2]}{found[3]}"
        if (int(found[1]), int(found[2])) < OLDEST:
            wanted = f"{OLDEST[0]}.{OLDEST[1]}"
            return "", f"{program} is Go {version}; {wanted} or newer is needed"
        return version, ""

    def _environ(self, workspace: Path) -> dict[str, str]:
        kept = {k: v for k, v in self._operator.items() if k in ("PATH", "GOROOT", "LANG")}
        return {
            **kept,
            "HOME": str(workspace),
            "GOCACHE": str(self._cache),
            "GOMODCACHE": str(workspace / "modules"),
            "GOTMPDIR": "",
            "TMPDIR": str(workspace),
            "GOENV": "off",
            "GOFLAGS": "-modcacherw",
            "GOPROXY": "off",
            "GOSUMDB": "off",
            "GOTOOLCHAIN": "local",
            "GOTELEMETRY": "off",
            "GOWORK": "off",
            # No C compiler: nothing that a source says is run while it is compiled.
            "CGO_ENABLED": "0",
        }


def template_digest(template: Path) -> str:
    """Return a digest of the template's files."""
    whole = hashlib.sha256()
    for path in sorted(template.iterdir()):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def prepare(directory: Path, template: Path) -> frozenset[str]:
    """Put the template beside the user's files, all in package main; return the user's names.

    A go.mod of the user's is kept: it names the module that their own packages are imported by.
    """
    own = [path for path in directory.glob("*.go") if not path.name.endswith("_test.go")]
    for path in own:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        path.write_text(as_main(text), encoding="utf-8", errors="surrogateescape")
    for path in template.iterdir():
        target = directory / (path.name if path.suffix != ".go" else _PREFIX + path.name)
        if path.name != "go.mod" or not target.exists():
            shutil.copyfile(path, target)
    return frozenset(path.name for path in own)


def as_main(source: str) -> str:
    """Return `source` in package main, every line where it was."""
    # The first clause that is no comment's: comments before it may well say "package".
    start = 0
    while match := _SKIPPED.match(source, start):
        if match.end() == start:
            break
        start = match.end()
    return source[:start] + _PACKAGE.sub(r"\1main", source[start:], count=1)


def explain(done: Finished, directory: Path, own: frozenset[str]) -> BuildFailed:
    """Return the failure that the compiler's output tells of."""
    complaints = [match for line in done.lines if (match := _PLACE.match(line))]
    if done.code < 0:
        return BuildFailed(
            "COMPILE_FAILED",
            "the compiler was killed, perhaps for want of memory",
            "try again, or make the source smaller",
            exit_code=done.code,
        )
    missing = [m for m in complaints if _is_template(m[1]) and "undefined: Handle" in m[4]]
    if missing:
        return BuildFailed(
            "HANDLER_MISSING",
            "the source defines no Handle",
            "add `func Handle(e Event, c Context) (any, error)`",
            exit_code=done.code,
        )
    users = [match for match in complaints if not _is_template(match[1])]
    if not users:
        text = "\n".join(line for line in done.lines if not line.startswith("# "))
        return BuildFailed("COMPILE_FAILED", text, _fix(text), exit_code=done.code)
    first = users[0]
    line, column = int(first[2]), int(first[3] or 0)
    more = f" (and {len(users) - 1} more)" if len(users) > 1 else ""
    place = "" if own == frozenset({SOURCE}) else f"{first[1]}: "
    return BuildFailed(
        "COMPILE_FAILED",
        f"{place}{first[4]}{more}",
        _fix(first[4]),
        line=line,
        column=column,
        source_line=_source_line(directory, first[1], line),
        exit_code=done.code,
    )


def _fix(message: str) -> str:
    if "main redeclared" in message:
        return "remove func main: the platform has its own"
    if "no required module" in message or "module lookup disabled" in message:
        return "use the standard library only, or put the modules into vendor/ of an archive"
    return "correct the source and deploy again"


def _is_template(name: str) -> bool:
    return os.path.basename(name).startswith(_PREFIX)


def _source_line(directory: Path, name: str, number: int) -> str:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
        return ""
    lines: Sequence[str] = path.read_text(errors="replace").splitlines()
    return lines[number - 1] if 0 < number <= len(lines) else ""
