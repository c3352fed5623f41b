"""Installing wheels for the Python of an image, which need not be on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from services.builder.backends.base import Order, Progress
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.programs import MARKER, run
from services.builder.backends.environment.threads import in_thread
from services.builder.backends.environment.uv import Target, Uv
from services.builder.backends.layers.image import ENVIRONMENT_ROOT
from services.builder.backends.layers.interpreter import ImagePython

_SHEBANG = re.compile(rb"#!.*\n")
# Of an installation, and not of what is installed: they would tell one time from another.
_LEFT_OUT = (".lock",)


class Installer:
    """Puts packages into a directory."""

    def __init__(self, uv: Uv, found: Interpreters) -> None:
        self._uv = uv
        self._interpreters = found

    async def install(
        self,
        order: Order,
        lines: Sequence[str],
        python: ImagePython,
        target: Target,
        progress: Progress,
    ) -> Path:
        """Return a directory with exactly these packages and their bytecode. Raises `BuildFailed`.

        Programs are in its `bin`, made to be run by the environment's Python.
        """
        workspace = order.make_workspace()
        made = workspace / "packages"
        await self._uv.install_for(lines, target, made, workspace, order.uid, progress.log)
        await in_thread(_tidy, made)
        await self._compile(made, python, workspace, order.uid, progress)
        return made

    async def _compile(
        self, made: Path, python: ImagePython, workspace: Path, uid: str, progress: Progress
    ) -> None:
        """Functions see their root read-only: without bytecode each start would compile anew."""
        found = await self._interpreters.found()
        fitting = (f for f in found if ".".join(map(str, f.release)) == python.release)
        interpreter = next(fitting, None)
        if interpreter is None:
            progress.log(
                f"the builder has no Python {python.release}: packages come without bytecode, and "
                "starts take longer"
            )
            return
        site = f"/{ENVIRONMENT_ROOT}/lib/python{python.release}/site-packages"
        # Hashed instead of dated, so that the same files give the same bytecode.
        options = ["--invalidation-mode", "unchecked-hash", "-s", str(made), "-p", site]
        command = [interpreter.path, "-s", "-S", "-m", "compileall", "-q", "-j", "1", *options]
        environ = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", MARKER: uid}
        done = await run([*command, str(made)], env=environ, cwd=workspace)
        if done.code < 0:
            progress.log(f"compiling ended early (signal {-done.code})")
        # Files of other versions, such as templates, do not compile, and need not.


def _tidy(made: Path) -> None:
    for name in _LEFT_OUT:
        (made / name).unlink(missing_ok=True)
    programs = made / "bin"
    if not programs.is_dir():
        return
    for program in programs.iterdir():
        content = program.read_bytes()
        first = _SHEBANG.match(content)
        if first and b"python" in first[0]:
            own = f"#!/{ENVIRONMENT_ROOT}/bin/python\n".encode()
            # Anew: the file may be linked with one of uv's cache.
            program.unlink()
            program.write_bytes(own + content[first.end() :])
            os.chmod(program, 0o755)
