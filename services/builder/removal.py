"""Removing what has come to its end: rows are marked, things go, rows go. In this order, so that
a crash at any point leaves something that says what is still to be removed."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from services.builder.backends.base import Made
from services.builder.builds import Builds, Released
from services.builder.changes import Changes
from services.builder.choice import Choice
from services.builder.worker import Worker

log = structlog.get_logger()


class Removal:
    """Removes builds that nobody holds."""

    def __init__(self, builds: Builds, choice: Choice, worker: Worker, changes: Changes) -> None:
        self._builds = builds
        self._choice = choice
        self._worker = worker
        self._changes = changes

    async def release(self, function_uid: str, build: str) -> tuple[list[str], list[str]]:
        """Give up a function's hold; return what was removed, and what stays and why."""
        released = await self._builds.release(function_uid, build)
        free = [one for one in released if one.made]
        failed = await self.remove_builds([one.made for one in released if one.made])
        if free:
            self._changes.deadlines.set()
        removed = [
            f"{thing.type} {made.id[:6]}"
            for made in (one.made for one in free)
            if made and made.uid not in failed and (thing := self._choice.thing_of(made))
        ]
        kept = [_kept(one) for one in released if not one.made]
        kept += [f"environment {one.environment[:6]}" for one in free if one.environment]
        return removed, kept

    async def remove_builds(self, ended: Sequence[Made]) -> dict[str, str]:
        """Remove the things and rows of ended builds; return what failed, by uid."""
        if not ended:
            return {}
        await self._worker.cancel(build.id for build in ended)
        failed = await self._choice.remove(ended)
        gone = [build for build in ended if build.uid not in failed]
        for uid, why in failed.items():
            log.error("artefact_not_removed", uid=uid, why=why)
        if gone:
            await self._builds.forget([(build.id, build.uid) for build in gone])
        for build in gone:
            self._changes.tell(build.id)
        return failed


def _kept(one: Released) -> str:
    return f"artefact {one.build[:6]} (other functions have it)"
