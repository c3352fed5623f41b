"""Whether Python source compiles in the interpreter that will run it, and has its handler."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from services.builder.backends.environment import interpreters, syntax
from services.builder.backends.environment.interpreters import Interpreter
from services.builder.backends.environment.programs import run
from services.builder.failures import BuildFailed

# Compiling holds the interpreter lock: what takes longer than a few milliseconds goes to a child.
_LARGE = 64 * 1024
_SECONDS = 30.0
_PROGRAM = Path(syntax.__file__)


async def check(
    source: bytes, path: Path, interpreter: Interpreter, *, wants_handler: bool
) -> None:
    """Raise `BuildFailed` when `source`, which is in the file `path`, cannot be used."""
    answer = await _examined(source, path, interpreter)
    if problem := judge(answer, source.decode(errors="replace"), wants_handler=wants_handler):
        raise problem


async def _examined(source: bytes, path: Path, interpreter: Interpreter) -> dict[str, Any]:
    own = interpreters.own()
    if len(source) > _LARGE:
        return await _ask(path, interpreter)
    answer = syntax.examine(source, path.name)
    if interpreter.release == own.release:
        return answer
    # A newer Python takes what this one takes, but for rare cases that its start will show; an
    # older one does not, and a newer one may take what this one refuses.
    if interpreter.release > own.release and answer["error"] is None:
        return answer
    return await _ask(path, interpreter)


async def _ask(path: Path, interpreter: Interpreter) -> dict[str, Any]:
    command = [interpreter.path, "-I", "-S", str(_PROGRAM), str(path)]
    try:
        async with asyncio.timeout(_SECONDS):
            done = await run(command, env={"LANG": "C.UTF-8"}, cwd=path.parent)
    except TimeoutError as error:
        raise BuildFailed(
            "SOURCE_SYNTAX",
            f"Python could not compile the source within {_SECONDS:.0f} s",
            "make it smaller or less deeply nested",
        ) from error
    if done.code != 0:
        raise BuildFailed(
            "SOURCE_SYNTAX",
            f"Python {interpreter.version} ended while it compiled the source: {done.text[-300:]}",
            "make it smaller or less deeply nested",
        )
    return json.loads(done.text)


def judge(answer: dict[str, Any], source: str, *, wants_handler: bool) -> BuildFailed | None:
    """Return what is wrong by the answer of `syntax.examine`, None where nothing is."""
    error = answer["error"]
    if error is not None:
        return _syntax(error, source)
    if not wants_handler:
        return None
    handler = answer["handler"]
    if handler is None:
        return BuildFailed(
            "HANDLER_MISSING",
            "the source defines no handler at its top level",
            "add `def handler(event, ctx): ...`",
        )
    if handler["problem"]:
        return BuildFailed(
            "HANDLER_MISSING",
            f"handler {handler['problem']}; it is called with (event, ctx)",
            "define it as `def handler(event, ctx): ...`",
            line=handler["line"],
            source_line=_line(source, handler["line"]),
        )
    return None


def _syntax(error: dict[str, Any], source: str) -> BuildFailed:
    line, column = int(error["line"]), int(error["column"])
    place = f" at line {line}" + (f", column {column}" if column else "") if line else ""
    return BuildFailed(
        "SOURCE_SYNTAX",
        str(error["message"]),
        f"correct the source{place} and deploy again",
        line=line,
        column=max(0, column),
        source_line=str(error["text"]) or _line(source, line),
    )


def _line(source: str, number: int) -> str:
    lines = source.splitlines()
    return lines[number - 1] if 0 < number <= len(lines) else ""
