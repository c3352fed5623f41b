"""The `[tool.mayfly]` table of a PEP 723 block."""

from __future__ import annotations

import difflib
import re
from datetime import timedelta
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from mayfly.durations import EXAMPLES, parse
from mayfly.v1.build_pb2 import ScriptSettings

from services.builder.backends.environment.pep723 import Metadata
from services.builder.failures import BuildFailed

_KEYS = ("name", "port", "health", "ttl", "idle-timeout")
_LONGEST = timedelta(days=36500)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def read(metadata: Metadata) -> ScriptSettings:
    """Return what the table asks for; unset fields were not named. Raises `BuildFailed`."""
    table = metadata.tool.get("mayfly", {})
    if not isinstance(table, dict):
        raise _wrong("[tool.mayfly]", "a table", metadata.line)
    settings = ScriptSettings()
    for key, value in cast("dict[str, Any]", table).items():
        _set(settings, key, value, metadata.line)
    return settings


def _set(settings: ScriptSettings, key: str, value: object, line: int) -> None:
    if key == "name":
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise _wrong(key, "a DNS label: a to z, 0 to 9 and -, at most 63", line)
        settings.name = value
    elif key == "port":
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
            raise _wrong(key, "a number from 1 to 65535", line)
        settings.port = value
    elif key == "health":
        if not isinstance(value, str) or not re.fullmatch(r"/[\x21-\x7e]*", value):
            raise _wrong(key, 'a path that begins with "/"', line)
        settings.health = value
    elif key == "ttl":
        settings.ttl.CopyFrom(_duration(key, value, line))
    elif key == "idle-timeout":
        settings.idle_timeout.CopyFrom(_duration(key, value, line))
    else:
        near = difflib.get_close_matches(key.replace("_", "-"), _KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(_KEYS)}"
        raise BuildFailed("SCRIPT_METADATA", f"[tool.mayfly] has no key {key}", hint, line=line)


def _duration(key: str, value: object, line: int) -> Duration:
    wanted = f"a duration of more than 0, such as {EXAMPLES}"
    if isinstance(value, str):
        try:
            length = parse(value)
        except ValueError as error:
            raise _wrong(key, wanted, line) from error
    elif isinstance(value, int | float) and not isinstance(value, bool) and value < 1e9:
        length = timedelta(seconds=value)
    else:
        raise _wrong(key, wanted, line)
    if not timedelta(0) < length < _LONGEST:
        raise _wrong(key, wanted, line)
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def _wrong(key: str, wanted: str, line: int) -> BuildFailed:
    name = key if key.startswith("[") else f"{key} in [tool.mayfly]"
    return BuildFailed(
        "SCRIPT_METADATA", f"{name} has to be {wanted}", f"write {key} as {wanted}", line=line
    )
