"""uv (https://docs.astral.sh/uv/): what it is told, and how it is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)
from uv import find_uv_bin

from services.builder.backends.environment import interpreters, uv_failures
from services.builder.backends.environment.interpreters import Interpreter
from services.builder.backends.environment.programs import MARKER, run
from services.builder.backends.environment.requirements import Requested, canonical, with_hashes
from services.builder.failures import BuildFailed

ATTEMPTS = 3
# What the operator says about indexes, proxies and certificates; nothing else of the platform's
# environment (its database, say) reaches uv, or a build script that uv runs.
_PASSED = re.compile(
    r"(?i:(https?|all|no)_proxy)|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT|NETRC|HOME|PATH|LANG|LC_ALL"
    r"|TMPDIR|XDG_CONFIG_(HOME|DIRS)|RUSTLS_.*|UV_.*"
)
# What decides where things go and what may run is the platform's.
_GOVERNED = re.compile(
    r"UV_(CACHE_DIR|PYTHON.*|PROJECT.*|WORKING_DIR.*|VENV.*|NO_CACHE|LINK_MODE|COMPILE.*|NO_BUILD.*"
    r"|NO_BINARY.*|BUILD_CONSTRAINT|CONSTRAINT|OVERRIDE|EXCLUDE.*|PRERELEASE|RESOLUTION|TOOL.*"
    r"|NO_CONFIG|SYSTEM_PYTHON|BREAK_SYSTEM_PACKAGES|RUN_.*|INSTALL_DIR|UNMANAGED_INSTALL|PUBLISH.*)"
)
# uv reads none of pip's variables; who has configured only pip means them as well.
_FROM_PIP = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX"}
_INDEX = re.compile(r"UV_(DEFAULT_INDEX|INDEX.*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|OFFLINE)")


@dataclass(frozen=True)
class Paths:
    """Directories of uv's, all on one file system so that wheels are linked and not copied."""

    cache: Path
    interpreters: Path


@dataclass(frozen=True)
class Target:
    """What requirements are resolved for: a Python and a platform, as uv names them.

    Example: "3.13", "x86_64-manylinux_2_28" (`uv pip compile --python-platform`).
    """

    version: str
    platform: str


def environment(operator: Mapping[str, str], paths: Paths) -> dict[str, str]:
    """Return uv's environment variables, from the operator's."""
    chosen = {
        name: value
        for name, value in operator.items()
        if _PASSED.fullmatch(name) and not _GOVERNED.fullmatch(name)
    }
    for pip, ours in _FROM_PIP.items():
        if pip in operator and not any(_INDEX.fullmatch(name) for name in chosen):
            chosen[ours] = operator[pip]
    # Certificates as the system has them: an index behind a private authority is trusted.
    chosen.setdefault("UV_SYSTEM_CERTS", "1")
    chosen.setdefault("UV_HTTP_RETRIES", "2")
    chosen.setdefault("UV_HTTP_TIMEOUT", "30")
    chosen |= {
        "UV_CACHE_DIR": str(paths.cache),
        "UV_PYTHON_INSTALL_DIR": str(paths.interpreters),
        # Interpreters are found and asked for here; uv gets an absolute path.
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "hardlink",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return chosen


def index_settings(environ: Mapping[str, str]) -> list[str]:
    """Return what of uv's environment decides how requirements are resolved."""
    deciding = [f"{k}={v}" for k, v in environ.items() if _INDEX.fullmatch(k)]
    return sorted(deciding)


def _unhashed(line: str, given: Mapping[str, tuple[str, ...]]) -> str:
    pinned, _, _ = line.partition(" --hash=")
    return pinned if canonical(pinned.partition("==")[0].partition("[")[0]) in given else line


class Uv:
    """Runs uv. Every method may be cancelled, which kills it, and raises `BuildFailed`."""

    def __init__(self, program: str, environ: Mapping[str, str], *, sdists: bool) -> None:
        """`sdists`: whether source distributions may be built, which runs their code."""
        self._program = program or find_uv_bin()
        self.environ = environ
        # As an option: uv's pip commands take no notice of UV_NO_BUILD.
        self._sources = ["--no-sources", *([] if sdists else ["--no-build"])]

    @property
    def deciding(self) -> list[str]:
        """What of the operator's settings decides how requirements are resolved."""
        return [*index_settings(self.environ), *self._sources]

    async def resolve(
        self,
        requested: Requested,
        interpreter: Interpreter,
        workspace: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> list[str]:
        """Return pinned lines, sorted. Example: ["idna==3.10", "six==1.17.0"]."""
        options = ["--python", interpreter.path, *self._sources]
        text = await self._compile(requested, options, workspace, uid, say)
        lines = (line.strip() for line in text.splitlines())
        pinned = sorted(line for line in lines if line and not line.startswith(("#", "-")))
        return with_hashes(pinned, requested.hashes)

    async def lock(
        self,
        requested: Requested,
        target: Target,
        workspace: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> list[str]:
        """Return pinned lines with their hashes, sorted, for another machine.

        Example: ["six==1.17.0 --hash=sha256:47... --hash=sha256:ff..."]. Only what has a wheel
        there is chosen, so that installing it runs no code. Hashes that the source gives for a
        requirement are the only ones that it is then installed with.
        """
        options = ["--python-version", target.version, "--python-platform", target.platform]
        # Any interpreter does, since none is asked: without one named, uv looks for the target's.
        options += ["--python", interpreters.own().path]
        options += ["--generate-hashes", "--no-sources", "--no-build"]
        text = await self._compile(requested, options, workspace, uid, say)
        joined = text.replace("\\\n", " ").splitlines()
        lines = sorted(" ".join(line.split()) for line in joined if not line.startswith(("#", "-")))
        given = requested.hashes or {}
        return with_hashes([_unhashed(line, given) for line in lines if line], given)

    async def _compile(
        self,
        requested: Requested,
        options: Sequence[str],
        workspace: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> str:
        wanted, answer = workspace / "requirements.in", workspace / "requirements.txt"
        wanted.write_text("".join(f"{each}\n" for each in requested.requirements))
        command = ["pip", "compile", str(wanted), "--output-file", str(answer)]
        command += ["--no-header", "--no-annotate"]
        for option, lines in (
            ("--constraints", requested.constraints),
            ("--overrides", requested.overrides),
        ):
            if lines:
                file = workspace / f"{option.strip('-')}.txt"
                file.write_text("".join(f"{each}\n" for each in lines))
                command += [option, str(file)]
        await self._run([*command, *options, *requested.options], workspace, uid, say)
        return answer.read_text()

    async def install(
        self,
        resolved: Sequence[str],
        interpreter: Interpreter,
        directory: Path,
        workspace: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> None:
        """Make an environment of exactly these in `directory`, with bytecode, fit to be moved."""
        create = ["venv", "--quiet", "--relocatable", "--no-project", "--python", interpreter.path]
        await self._run([*create, str(directory)], workspace, uid, say)
        pinned = workspace / "pinned.txt"
        pinned.write_text("".join(f"{each}\n" for each in resolved))
        command = ["pip", "sync", str(pinned), "--python", str(directory / "bin" / "python")]
        # Functions see environments read-only: without bytecode each start would compile anew.
        await self._run([*command, *self._sources, "--compile-bytecode"], workspace, uid, say)

    async def install_for(
        self,
        resolved: Sequence[str],
        target: Target,
        directory: Path,
        workspace: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> None:
        """Put exactly these into a plain directory, for another machine: wheels only."""
        pinned = workspace / "pinned.txt"
        pinned.write_text("".join(f"{each}\n" for each in resolved))
        command = ["pip", "install", "--requirements", str(pinned), "--target", str(directory)]
        command += ["--python-version", target.version, "--python-platform", target.platform]
        command += ["--python", interpreters.own().path, "--no-deps", "--no-build", "--no-sources"]
        await self._run(command, workspace, uid, say)

    async def install_python(
        self, wanted: str, workspace: Path, uid: str, say: Callable[[str], None]
    ) -> None:
        """Download an interpreter that satisfies `wanted` (a version specifier)."""
        command = ["python", "install", "--no-bin", wanted]
        environ = {**self.environ, "UV_PYTHON_DOWNLOADS": "manual"}
        await self._once(command, environ, workspace, uid, say)

    async def _run(
        self, arguments: Sequence[str], cwd: Path, uid: str, say: Callable[[str], None]
    ) -> None:
        def tell(state: RetryCallState) -> None:
            number = state.attempt_number + 1
            say(f"the package index did not answer; trying again ({number} of {ATTEMPTS})")

        # Only an index that does not answer may answer the next time.
        retrying = AsyncRetrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, BuildFailed) and error.reason == "INDEX_UNREACHABLE"
            ),
            wait=wait_exponential_jitter(multiplier=0.5, max=5),
            stop=stop_after_attempt(ATTEMPTS),
            before_sleep=tell,
            reraise=True,
        )
        await retrying(self._once, arguments, self.environ, cwd, uid, say)

    async def _once(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        cwd: Path,
        uid: str,
        say: Callable[[str], None],
    ) -> None:
        # uv looks for a project's settings in every directory above; this one ends the search.
        (cwd / "uv.toml").touch()
        done = await run(
            [self._program, *arguments],
            env={**environ, MARKER: uid},
            cwd=cwd,
            on_line=lambda line: say(uv_failures.redacted(line)),
            errors_only=True,
        )
        if done.code:
            raise uv_failures.classify(done.code, done.lines)
