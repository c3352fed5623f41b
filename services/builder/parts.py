"""What backends are put together from."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from libs.store import Store
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.catalog import Catalog
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.uv import Paths, Uv, environment
from services.builder.backends.locks import Locks
from services.builder.config import Settings
from services.builder.directories import Directories, remove


@dataclass(frozen=True)
class Parts:
    """Parts that more than one backend needs, made once."""

    directories: Directories
    uv: Uv
    catalog: Catalog
    interpreters: Interpreters
    locks: Locks
    limits: Limits


def parts(settings: Settings, directories: Directories, store: Store) -> Parts:
    """Make them."""
    paths = Paths(directories.cache, directories.interpreters)
    uv = Uv(settings.uv, environment(os.environ, paths), sdists=settings.build_sdists)

    async def install_python(wanted: str, say: Callable[[str], None]) -> None:
        # Made and removed here: it belongs to no build, since others will want it as well.
        workspace = directories.temporary / f"python.{secrets.token_hex(6)}"
        workspace.mkdir(mode=0o700)
        try:
            await uv.install_python(wanted, workspace, "python", say)
        finally:
            remove([workspace])

    catalog = Catalog(store, settings.resolution_age)
    return Parts(
        directories=directories,
        uv=uv,
        catalog=catalog,
        interpreters=Interpreters(
            os.environ,
            directories.interpreters,
            install_python if settings.python_downloads else None,
        ),
        locks=Locks(uv, catalog, settings.concurrent_installs),
        limits=Limits(bytes=settings.max_archive_bytes, files=settings.max_archive_files),
    )
