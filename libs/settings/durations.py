"""Durations in settings: "10m", "24h", "600s", a plain number of seconds, or ISO 8601: "PT2M"."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from mayfly.durations import parse
from pydantic import BeforeValidator


def _read(value: object) -> object:
    # Of text, pydantic by itself reads ISO 8601 alone.
    return parse(value) if isinstance(value, str) and not value.startswith("P") else value


Duration = Annotated[timedelta, BeforeValidator(_read)]
