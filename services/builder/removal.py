"""Removing what has come to its end: rows are marked, files go, rows go. In this order, so that
a crash at any point leaves something that says what is still to be removed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from services.builder.builds import Builds, Released
from services.builder.changes import Changes
from services.builder.directories import Directories, names, remove
from services.builder.worker import Worker

log = structlog.get_logger()


class Removal:
    """Removes builds that nobody holds."""

    def __init__(
        self, builds: Builds, directories: Directories, worker: Worker, changes: Changes
    ) -> None:
        self._builds = builds
        self._directories = directories
        self._worker = worker
        self._changes = changes

    async def release(self, function_uid: str, build: str) -> tuple[list[str], list[str]]:
        """Give up a function's hold; return what was removed, and what stays and why."""
        released = await self._builds.release(function_uid, build)
        free = [one for one in released if one.free]
        failed = await self.remove_builds([(one.build, one.uid) for one in free])
        if free:
            self._changes.deadlines.set()
        removed = [f"artefact {one.build[:6]}" for one in free if one.uid not in failed]
        kept = [_kept(one) for one in released if not one.free]
        kept += [f"environment {one.environment[:6]}" for one in free if one.environment]
        return removed, kept

    async def remove_builds(self, ended: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Remove the files and rows of ended builds (id, uid); return what failed, by uid."""
        if not ended:
            return {}
        await self._worker.cancel(build for build, _ in ended)
        failed = await asyncio.to_thread(self._remove_files, ended)
        gone = [(build, uid) for build, uid in ended if uid not in failed]
        for uid, why in failed.items():
            log.error("artefact_not_removed", uid=uid, why=why)
        if gone:
            await self._builds.forget(gone)
        for build, _ in gone:
            self._changes.tell(build)
        return failed

    def _remove_files(self, ended: Sequence[tuple[str, str]]) -> dict[str, str]:
        uids = {uid for _, uid in ended}
        failed: dict[str, str] = {}
        for build, uid in ended:
            for why in remove([self._directories.artefact(build, uid)]).values():
                failed[uid] = why
        # Workspaces are few: only of builds that are under way.
        for name in names(self._directories.temporary):
            uid = name.partition(".")[0]
            if uid in uids:
                for why in remove([self._directories.temporary / name]).values():
                    failed[uid] = why
        return failed


def _kept(one: Released) -> str:
    return f"artefact {one.build[:6]} (other functions have it)"
