"""The filter of ListFunctions: conditions joined by AND, a part of https://google.aip.dev/160."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.function_pb2 import State

from libs.rpc.errors import MayflyError

ValueT = TypeVar("ValueT", int, str)

_FIX = "write conditions such as state=READY AND labels.team=x AND runtime!=go"
_CONDITION = re.compile(
    r"""\s*(?P<name>[A-Za-z_][\w./-]*)\s*(?P<operator>!=|=)\s*
        (?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"=!()<>]+))\s*""",
    re.VERBOSE,
)
_AND = re.compile(r"AND(?=\s)")


@dataclass
class Filter:
    """What to list; None means whatever there is."""

    states: list[int] | None = None
    not_states: list[int] | None = None
    runtimes: list[str] | None = None
    not_runtimes: list[str] | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    not_labels: list[str] = field(default_factory=list[str])
    nothing: bool = False
    """Two conditions contradict each other."""


def parse_filter(text: str) -> Filter:
    """Return the conditions of `text`; empty text has none. Raises `MayflyError`."""
    result = Filter()
    rest = text.strip()
    while rest:
        match = _CONDITION.match(rest)
        if match is None:
            _refuse(f"the filter cannot be read from {rest[:40]!r} on")
        value = match["quoted"] if match["quoted"] is not None else match["plain"]
        _add(result, match["name"], match["operator"] == "=", value)
        rest = rest[match.end() :]
        if not rest:
            break
        joined = _AND.match(rest)
        if joined is None:
            _refuse(f"conditions are joined by AND, not by {rest[:20]!r}")
        rest = rest[joined.end() :].lstrip()
        if not rest:
            _refuse("a condition is missing after AND")
    return result


def _add(result: Filter, name: str, equal: bool, value: str) -> None:
    if name == "state":
        number = _state(value)
        result.states, result.not_states = _narrow(
            result, result.states, result.not_states, number, equal
        )
    elif name == "runtime":
        result.runtimes, result.not_runtimes = _narrow(
            result, result.runtimes, result.not_runtimes, value, equal
        )
    elif name.startswith("labels.") and len(name) > len("labels."):
        key = name.removeprefix("labels.")
        if not equal:
            result.not_labels.append(json.dumps({key: value}))
        elif result.labels.setdefault(key, value) != value:
            result.nothing = True
    else:
        _refuse(f"there is no field {name!r} to filter by")


def _narrow(
    result: Filter,
    wanted: list[ValueT] | None,
    unwanted: list[ValueT] | None,
    value: ValueT,
    equal: bool,
) -> tuple[list[ValueT] | None, list[ValueT] | None]:
    if not equal:
        return wanted, [*(unwanted or []), value]
    if wanted is not None and wanted != [value]:
        result.nothing = True
    return [value], unwanted


def _state(value: str) -> int:
    name = f"STATE_{value.upper().removeprefix('STATE_')}"
    if name not in State.keys():  # noqa: SIM118 - an enum wrapper, no dict
        _refuse(f"there is no state {value!r}")
    return State.Value(name)


def _refuse(message: str) -> NoReturn:
    raise MayflyError(ErrorReason.ERROR_REASON_INVALID_FILTER, message, fix=_FIX, field="filter")
