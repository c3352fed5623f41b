"""How much is logged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
"""The lowest level that is logged, in upper or lower case."""
