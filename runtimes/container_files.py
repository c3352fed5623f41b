"""The files that a container with a function in Python needs, by path in the runtime's folder.

Beside the modules there is their bytecode for this process's own Python: where a container has the
same, it need not compile them at each start (PEP 552; other versions do not look at it).
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import runtimes.python

_HANDLERS = (
    "__init__", "connections", "container", "contract", "http1", "loading", "open_files",
    "permits", "probes", "serving",
)  # fmt: skip
_SCRIPTS = ("open_files", "relay", "script")
_UNCHECKED = 0b01
"""Flags of bytecode that is named by its source's hash, and taken without looking at that."""


OWN_VERSION = "{}.{}".format(*sys.version_info)


def of_handlers(version: str = OWN_VERSION) -> dict[str, bytes]:
    """What `python FOLDER/container.py` needs where Python is of a version, such as "3.13.1"."""
    return _files(_HANDLERS, is_own(version))


def of_scripts(version: str = OWN_VERSION) -> dict[str, bytes]:
    """What `python FOLDER/script.py` needs where Python is of a version."""
    return _files(_SCRIPTS, is_own(version))


def is_own(version: str) -> bool:
    """Whether the bytecode of this process fits a version."""
    return version.split(".")[:2] == OWN_VERSION.split(".")


@cache
def _files(modules: Sequence[str], bytecode: bool) -> dict[str, bytes]:
    folder = Path(next(iter(runtimes.python.__path__)))
    found: dict[str, bytes] = {}
    for module in modules:
        source = (folder / f"{module}.py").read_bytes()
        found[f"{module}.py"] = source
        if bytecode:
            path = f"__pycache__/{module}.{sys.implementation.cache_tag}.pyc"
            found[path] = _bytecode(source, f"{module}.py")
    return found


def _bytecode(source: bytes, name: str) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True)
    return b"".join(
        (
            importlib.util.MAGIC_NUMBER,
            _UNCHECKED.to_bytes(4, "little"),
            importlib.util.source_hash(source),
            marshal.dumps(code),
        )
    )
