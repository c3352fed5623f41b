"""Addresses as settings write them, checked where they are read."""

from __future__ import annotations

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


ServiceAddress = Annotated[str, AfterValidator(_reached)]
"""A gRPC address: unix:/path or host:port."""
HostAndPort = Annotated[str, AfterValidator(_with_port)]
"""A TCP address: host:port."""
OptionalServiceAddress = Annotated[str, AfterValidator(lambda value: value and _reached(value))]
"""The same; or empty."""
OptionalHostAndPort = Annotated[str, AfterValidator(lambda value: value and _with_port(value))]
"""The same; or empty."""
OptionalUrl = Annotated[str, AfterValidator(lambda value: value and _url(value))]
"""http:// or https://, without a slash at its end; or empty."""
DatabaseUrl = Annotated[str, AfterValidator(_database)]
"""postgresql://user@host/database."""
OptionalDatabaseUrl = Annotated[str, AfterValidator(lambda value: value and _database(value))]
"""The same; or empty."""
