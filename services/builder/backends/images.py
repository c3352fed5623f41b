"""The images of functions: one repository, one tag a build."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

from mayfly.v1.build_pb2 import Artefact

from libs.registry import Denied, RegistryError, Repository, Unreachable
from services.builder.backends.base import IMAGE, Made, Thing, World
from services.builder.failures import BuildFailed

_TAG = re.compile(r"(?P<build>[0-9a-f]+)-(?P<uid>[0-9a-f]+)")
# Requests that one call has under way at a time.
_AT_ONCE = 16
# Images that are asked for one by one, where their tags are not listed any more.
_MOST_SUSPECTS = 100


def tag_of(build: str, uid: str) -> str:
    """Return the tag of a build's image."""
    return f"{build}-{uid}"


def failure_of(error: RegistryError) -> BuildFailed:
    """Return what an answer of the registry means for a build."""
    if isinstance(error, Unreachable):
        return BuildFailed(
            "REGISTRY_UNREACHABLE",
            str(error),
            "try again; if it persists, ask the operator to check MAYFLY_REGISTRY",
        )
    if isinstance(error, Denied):
        fix = "ask the operator to check the credentials of the registry (MAYFLY_REGISTRY_AUTH)"
    else:
        fix = "ask the operator to check the registry (MAYFLY_REGISTRY)"
    return BuildFailed("PUSH_REFUSED", f"the registry refused: {error}", fix)


class FunctionImages:
    """Looks at and removes what builds have pushed, whichever backend did."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._known: dict[str, str] = {}

    async def ask(self) -> None:
        """Ask the registry for anything. Raises `BuildFailed` where it does not answer."""
        try:
            await self._repository.manifest_digest("any")
        except Unreachable as error:
            raise failure_of(error) from error
        except RegistryError:
            return  # whatever it refuses: it answers

    async def present(self, artefact: Artefact) -> bool:
        """Whether an artefact's image is there. Raises `BuildFailed` where that is not known."""
        digest = artefact.image.rpartition("@")[2]
        try:
            return await self._repository.manifest_digest(digest) is not None
        except RegistryError as error:
            raise failure_of(error) from error

    async def lost(self, builds: Sequence[Made]) -> list[str]:
        """See `Backend.lost`. One listing, and a request for each whose tag is not in it."""
        try:
            tags = frozenset(await self._repository.tags())
        except RegistryError as error:
            raise failure_of(error) from error
        room = asyncio.Semaphore(_AT_ONCE)

        async def is_lost(made: Made) -> bool:
            # Pods pull by digest: a manifest that has only lost its tag is still there.
            async with room:
                return made.artefact is not None and not await self.present(made.artefact)

        suspects = [made for made in builds if tag_of(made.id, made.uid) not in tags]
        suspects = suspects[:_MOST_SUSPECTS]
        found = await asyncio.gather(*(is_lost(made) for made in suspects))
        return [made.uid for made, lost in zip(suspects, found, strict=True) if lost]

    async def remove(self, builds: Sequence[Made]) -> dict[str, str]:
        """Remove builds' images; by uid, why one could not be.

        A manifest goes by its digest, unless another build has the very same one: then only the
        tag does.
        """
        return await self._remove({made.uid: tag_of(made.id, made.uid) for made in builds})

    async def look(self) -> World:
        """Look at all tags. Raises `BuildFailed` where they cannot be seen."""
        try:
            tags = await self._repository.tags()
        except RegistryError as error:
            raise failure_of(error) from error
        found = [self._thing(tag) for tag in tags]
        return World(found, [f"images ({len(found)})"])

    async def remove_thing(self, thing: Thing) -> str:
        """Remove an image that `look` has found; return why it could not be, "" when it is gone."""
        tag = thing.id.removeprefix(f"{self._repository.full_name}:")
        return (await self._remove({thing.uid: tag})).get(thing.uid, "")

    async def _remove(self, tags: dict[str, str]) -> dict[str, str]:
        try:
            mine = await self._digests(tags.values())
            if not mine:
                return {}
            others = set(await self._repository.tags()) - set(tags.values())
            shared = await self._shared(others, tags.values())
        except RegistryError as error:
            return dict.fromkeys(tags, str(error))
        failed: dict[str, str] = {}
        for uid, tag in tags.items():
            digest = mine.get(tag)
            if digest is None:
                continue
            try:
                if digest in shared:
                    await self._repository.delete_tag(tag)
                else:
                    await self._repository.delete_manifest(digest)
            except RegistryError as error:
                failed[uid] = f"image {tag}: {error}"
        return failed

    async def _shared(self, others: set[str], ending: Iterable[str]) -> set[str]:
        """Return the digests of the other tags; each tag is asked for once.

        A build's uid is in its tag, so a tag of an ended build never moves. Those of the builds
        that are ending now may be under way in another try, and are always asked for.
        """
        builds = {tag.partition("-")[0] for tag in ending}
        ask = {t for t in others if t not in self._known or t.partition("-")[0] in builds}
        fresh = await self._digests(ask)
        kept = {tag: digest for tag, digest in self._known.items() if tag in others - ask}
        self._known = kept | fresh
        return set(self._known.values())

    async def _digests(self, tags: Iterable[str]) -> dict[str, str]:
        """Return the digests of those tags that there are."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def ask(tag: str) -> tuple[str, str | None]:
            async with room:
                return tag, await self._repository.manifest_digest(tag)

        found = await asyncio.gather(*(ask(tag) for tag in tags))
        return {tag: digest for tag, digest in found if digest is not None}

    def _thing(self, tag: str) -> Thing:
        parts = _TAG.fullmatch(tag)
        name, uid = (parts["build"], parts["uid"]) if parts else ("", "")
        return Thing(IMAGE, f"{self._repository.full_name}:{tag}", name, uid)
