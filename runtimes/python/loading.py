"""A handler's module: imported, and what is wrong with it as a value."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Config(NamedTuple):
    """entry: the handler's file. timeout: seconds a request may take. max_body: bytes."""

    entry: str
    function_id: str
    timeout: float
    concurrency: int
    max_body: int


class HandlerFailed(Exception):
    """The handler's module cannot be used."""

    def __init__(self, reason: str, message: str, trace: list[str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.trace = trace


def load_handler(entry: str) -> Callable[[Any, Any], Any]:
    """Import the file and return its `handler`. Raises HandlerFailed."""
    name = os.path.splitext(os.path.basename(entry))[0]
    spec = importlib.util.spec_from_file_location(name, entry)
    if spec is None or spec.loader is None:
        raise HandlerFailed("HANDLER_IMPORT_FAILED", f"{entry} is no Python file", [])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # What the loader's exec_module does, without looking for a cached .pyc.
        with open(entry, "rb") as file:
            code = compile(file.read(), entry, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        lines = user_traceback(error)
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise HandlerFailed("HANDLER_IMPORT_FAILED", message, lines) from error
    handler = getattr(module, "handler", None)
    if not callable(handler):
        raise HandlerFailed("HANDLER_MISSING", "the module defines no handler(event, ctx)", [])
    return handler


def user_traceback(error: BaseException) -> list[str]:
    """The traceback without the frames of this server and of the import machinery."""
    import traceback  # seldom needed, and slow to import

    own = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (file.startswith((own, "<frozen importlib")) or file == __file__):
            break
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return text.rstrip("\n").split("\n")
