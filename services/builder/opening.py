"""The backends that the settings name, put together."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import runtimes
from services.builder.backends.base import Backend
from services.builder.backends.bundle.backend import BundleBackend
from services.builder.backends.environment.backend import PLATFORM, EnvironmentBackend
from services.builder.backends.environment.environments import Environments
from services.builder.backends.environment.go import Go
from services.builder.backends.environment.uv import Target
from services.builder.backends.local import Local
from services.builder.choice import Choice
from services.builder.config import Settings
from services.builder.parts import Parts


async def open_backends(settings: Settings, parts: Parts, stack: AsyncExitStack) -> Choice:
    """Put the backends together; `stack` ends what they have open.

    Nothing that they talk to has to answer yet.
    """
    backends = [await _open(name, settings, parts, stack) for name in settings.build_backends]
    return Choice(backends, None, Local(parts.directories))


async def _open(name: str, settings: Settings, parts: Parts, stack: AsyncExitStack) -> Backend:
    # Clients of clusters and registries take seconds and 100 MB to import: only where wanted.
    if name == "bundle":
        target = Target(settings.base_python, settings.base_platform)
        return BundleBackend(target, parts.interpreters, parts.locks, parts.limits)
    return _environment(settings, parts)


def _environment(settings: Settings, parts: Parts) -> EnvironmentBackend:
    directories = parts.directories
    template = Path(next(iter(runtimes.__path__))) / "go" / "template"
    at_once = settings.concurrent_installs
    return EnvironmentBackend(
        directories,
        parts.interpreters,
        Environments(parts.uv, parts.catalog, directories.environments, PLATFORM, at_once),
        Go(settings.go, os.environ, directories.go_cache, template, at_once),
        parts.limits,
        fingerprint=f"sdists={settings.build_sdists}",
    )
