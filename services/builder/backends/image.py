"""Images that are built already (`source.image`): named by digest, and never removed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from mayfly.v1.build_pb2 import Artefact
from mayfly.v1.source_pb2 import Stage

from services.builder.backends.base import Order, Progress
from services.builder.failures import BuildFailed

_SECONDS = 5.0
# https://github.com/distribution/reference/blob/main/regexp.go, a little stricter on hosts.
_HOST = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:[0-9]))(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>{_HOST}/)?(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LONGEST = 512
_EXAMPLE = 'write it such as "ghcr.io/me/hello:1.2"'


@dataclass(frozen=True)
class Reference:
    """An image's name taken apart. Example host: "ghcr.io"; empty where it names none."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def repository(self) -> str:
        """The name without tag and digest. Example: "ghcr.io/me/hello"."""
        return f"{self.host}/{self.path}" if self.host else self.path


def parse(text: str) -> Reference:
    """Return an image's reference. Raises `BuildFailed` for what is none."""
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise BuildFailed("INVALID_SOURCE", f"{text[:200]!r} is no reference of an image", _EXAMPLE)
    host = (match["host"] or "").removesuffix("/")
    return Reference(host, match["path"], match["tag"] or "", match["digest"] or "")


Resolve = Callable[[str], Awaitable[str]]
"""Asks a registry for the digest of "host/path:tag". Raises `BuildFailed`."""


class GivenImages:
    """Takes images from any registry; asks only those that the operator has named.

    Asking any host that a source names would make the platform call any address.
    """

    def __init__(self, repository: str, hosts: Collection[str], resolve: Resolve) -> None:
        """`repository` is that of functions' images; `hosts` are those that may be asked."""
        self._repository = repository
        self._hosts = frozenset(hosts)
        self._resolve = resolve

    def is_ours(self, image: str) -> bool:
        """Whether an image is one that was built here, which goes with its build."""
        return image.startswith((f"{self._repository}@", f"{self._repository}:"))

    async def pinned(self, source: bytes) -> bytes:
        """Return the reference with its digest, as it is where that cannot be had.

        Raises `BuildFailed` for what is no reference, and for another function's image.
        """
        reference = self._read(source)
        if reference.digest:
            return source.strip()
        pinned, _ = await self._pinned(reference)
        return pinned.encode() if pinned else source.strip()

    async def build(self, order: Order, progress: Progress) -> Artefact:
        """Return the artefact; nothing is built. Raises `BuildFailed`."""
        with progress.step(Stage.STAGE_CHECK) as step:
            reference = self._read(order.source)
            image = order.source.decode()
            if not reference.digest:
                pinned, why_not = await self._pinned(reference)
                if why_not:
                    progress.log(f"the image is taken as it is named: {why_not}")
                image = pinned or image
            step.detail(f"image {image}")
        return Artefact(kind=Artefact.KIND_IMAGE, image=image)

    def _read(self, source: bytes) -> Reference:
        reference = parse(source.decode(errors="replace").strip())
        if reference.repository == self._repository:
            raise BuildFailed(
                "INVALID_SOURCE",
                f"{self._repository} holds the images of functions, which are theirs alone",
                "push your image to a repository of your own",
            )
        return reference

    async def _pinned(self, reference: Reference) -> tuple[str, str]:
        """The reference with its digest, or why there is none."""
        if reference.host not in self._hosts:
            named = reference.host or "docker.io"
            return "", (
                f"the builder does not ask {named} (only registries of MAYFLY_REGISTRY and "
                "MAYFLY_REGISTRY_AUTH)"
            )
        tag = reference.tag or "latest"
        try:
            async with asyncio.timeout(_SECONDS):
                digest = await self._resolve(f"{reference.repository}:{tag}")
        except BuildFailed as error:
            return "", error.message
        except TimeoutError:
            return "", f"{reference.host} did not answer within {_SECONDS:.0f} s"
        return f"{reference.repository}@{digest}", ""
