"""Each service's settings when the four share one machine: unix sockets between them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

import services.builder.config
import services.deployer.config
import services.gateway.config
import services.janitor.config
from libs.rpc.addresses import host_and_port
from libs.rpc.process import SettingsError, explain
from services.standalone.config import StandaloneSettings

PREFIX = "MAYFLY_"
# Read by the client and set for functions; they may well be in the environment of `make run`.
FOREIGN = frozenset({"MAYFLY_URL", "MAYFLY_FUNCTION"})

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


@dataclass(frozen=True)
class Wiring:
    """The four services' settings, and where the whole is reached."""

    builder: services.builder.config.Settings
    deployer: services.deployer.config.Settings
    janitor: services.janitor.config.Settings
    gateway: services.gateway.config.Settings
    public_url: str


def wire(settings: StandaloneSettings, database_url: str) -> Wiring:
    """Return settings that connect the four; what they leave open is read from the environment.

    Raises `SettingsError` that names every setting which is wrong or unknown.
    """
    _refuse_unknown()
    sockets = settings.data_dir / "sockets"
    addresses = {
        f"{name}_{side}": f"unix:{sockets}/{name}"
        for name in ("builder", "deployer", "janitor")
        for side in ("listen", "address")
    }
    # Port 0 (tests) has no URL before it is bound; functions' URLs then have the path alone.
    host, port = host_and_port(settings.listen)
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::1", "::") else host
    scheme = "https" if os.environ.get(f"{PREFIX}TLS_CERTIFICATE") else "http"
    public_url = settings.public_url or f"{scheme}://{shown}:{port}"
    common = {
        **addresses,
        "data_dir": settings.data_dir,
        "database_url": database_url,
        "listen": settings.listen,
        "public_url": public_url,
        "log_level": settings.log_level,
        "gateway_name": "standalone",
        "replica": "standalone",
    }
    return Wiring(
        builder=_load(services.builder.config.Settings, common),
        deployer=_load(services.deployer.config.Settings, common),
        janitor=_load(services.janitor.config.Settings, common),
        gateway=_load(services.gateway.config.Settings, common),
        public_url=public_url,
    )


def _load(kind: type[SettingsT], given: Mapping[str, object]) -> SettingsT:
    known = {name: value for name, value in given.items() if name in kind.model_fields}
    try:
        return kind(**known)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, PREFIX))) from error


def _refuse_unknown() -> None:
    kinds: tuple[type[BaseSettings], ...] = (
        StandaloneSettings,
        services.builder.config.Settings,
        services.deployer.config.Settings,
        services.janitor.config.Settings,
        services.gateway.config.Settings,
    )
    known = {f"{PREFIX}{field.upper()}" for kind in kinds for field in kind.model_fields}
    if lines := unknown_settings(os.environ, known):
        raise SettingsError("\n".join(lines))


def unknown_settings(names: Iterable[str], known: set[str]) -> list[str]:
    """Return a line for each variable of ours that no part knows, with the nearest known one."""
    lines: list[str] = []
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known | FOREIGN:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{name}: there is no such setting{hint}")
    return lines
