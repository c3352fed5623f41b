"""Durations as people write them: "10m", "1h30m", "600s", "1.5h", "250ms", or plain seconds."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

EXAMPLES = "10m, 1h30m, 600s"


def parse(text: str) -> timedelta:
    """Return the duration that `text` says. Raises `ValueError` that says how to write one."""
    compact = text.strip().lower().replace(" ", "")
    try:
        if _NUMBER.fullmatch(compact):
            return timedelta(seconds=float(compact))
        if _WHOLE.fullmatch(compact):
            parts = _PART.findall(compact)
            return sum((float(n) * _UNITS[unit] for n, unit in parts), timedelta())
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than can be counted") from error
    raise ValueError(f"{text!r} is no duration; write it like {EXAMPLES}")


def short(duration: timedelta) -> str:
    """Return `duration` in at most two units. Examples: "1h30m", "10m", "45s", "120ms", "2d4h"."""
    milliseconds = round(duration / timedelta(milliseconds=1))
    if milliseconds < 0:
        return f"-{short(-duration)}"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds = round(milliseconds / 1000)
    sizes = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    parts: list[str] = []
    for unit, size in sizes:
        count, rest = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
            seconds = rest
        if parts and (len(parts) == 2 or not count):
            break
    return "".join(parts)


def clock(duration: timedelta) -> str:
    """Return `duration` as a countdown shows it. Examples: "10:00", "1:30:00", "0:07"."""
    seconds = max(0, round(duration.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"
