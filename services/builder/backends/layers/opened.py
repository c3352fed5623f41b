"""The backend put together from plain values."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from libs.registry import Repository, Transport, parse
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.catalog import Catalog
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.uv import Uv
from services.builder.backends.layers.backend import LayersBackend
from services.builder.backends.layers.base import BaseImages
from services.builder.backends.layers.environments import SharedEnvironments
from services.builder.backends.layers.installing import Installer
from services.builder.backends.locks import Locks


def open_layers(
    stack: AsyncExitStack,
    *,
    registry: str,
    insecure: bool,
    auth: Path | None,
    base_image: str,
    platform: str,
    build_timeout: timedelta,
    at_once: int,
    uv: Uv,
    catalog: Catalog,
    found: Interpreters,
    locks: Locks,
    limits: Limits,
) -> LayersBackend:
    """Return the backend; `stack` ends its connections. Nothing has to answer yet.

    `registry` is host[:port][/prefix]: images go to <registry>/functions, layers of requirements
    to <registry>/environments. `platform` is uv's name. Example: "x86_64-manylinux_2_28".
    """
    host, _, prefix = registry.partition("/")
    patience = build_timeout.total_seconds()

    def transport(of: str, *, insecure: bool) -> Transport:
        made = Transport(of, insecure=insecure, auth=auth, patience=patience)
        stack.push_async_callback(made.close)
        return made

    own = transport(host, insecure=insecure)
    base = parse(base_image)
    same = base.host == host
    base_transport = own if same else transport(base.api_host, insecure=False)
    below = f"{prefix}/" if prefix else ""
    environments = SharedEnvironments(
        Repository(own, f"{below}environments"), catalog, Installer(uv, found), at_once
    )
    return LayersBackend(
        Repository(own, f"{below}functions"),
        BaseImages(base, Repository(base_transport, base.repository), platform.partition("-")[0]),
        environments,
        locks,
        found,
        limits,
        platform=platform,
        build_timeout=build_timeout,
    )
