"""Durations in settings: "10m", "24h", "600s", or a plain number of seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from mayfly.durations import parse
from pydantic import BeforeValidator


def _read(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


# The environment gives text, and pydantic by itself reads only ISO 8601 in text.
Duration = Annotated[timedelta, BeforeValidator(_read)]
