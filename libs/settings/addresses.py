"""Addresses as settings write them, checked where they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from libs.rpc.addresses import host_and_port, parse


def _reached(value: str) -> str:
    parse(value)
    return value


def _with_port(value: str) -> str:
    host_and_port(value)
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with https:// or http://")
    return value.rstrip("/")


def _database(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    return value


def _or_empty(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda value: value and check(value))


ServiceAddress = Annotated[str, AfterValidator(_reached)]
"""A gRPC address: unix:/path or host:port."""
HostAndPort = Annotated[str, AfterValidator(_with_port)]
"""A TCP address: host:port."""
OptionalServiceAddress = Annotated[str, _or_empty(_reached)]
"""The same; or empty."""
OptionalHostAndPort = Annotated[str, _or_empty(_with_port)]
"""The same; or empty."""
OptionalUrl = Annotated[str, _or_empty(_url)]
"""http:// or https://, without a slash at its end; or empty."""
DatabaseUrl = Annotated[str, AfterValidator(_database)]
"""postgresql://user@host/database."""
OptionalDatabaseUrl = Annotated[str, _or_empty(_database)]
"""The same; or empty."""
