"""The limit of open files that a function has in a container, which itself sets none."""

from __future__ import annotations

import resource
from collections.abc import Mapping


def limit(environ: Mapping[str, str]) -> None:
    """Hold this process and its children to MAYFLY_OPEN_FILES; without it, to what there is.

    Raises ValueError for a number that is none.
    """
    wanted = int(environ.get("MAYFLY_OPEN_FILES") or 0)
    if wanted <= 0:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
