"""Names of images (https://github.com/distribution/reference)."""

from __future__ import annotations

from dataclasses import dataclass

_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True)
class Reference:
    """An image. `reference` is its digest where it has one, else its tag.

    Example: host "ghcr.io", repository "me/hello", reference "1.2" or "sha256:...".
    """

    host: str
    repository: str
    reference: str

    @property
    def name(self) -> str:
        """The whole. Example: "ghcr.io/me/hello:1.2"."""
        mark = "@" if ":" in self.reference else ":"
        return f"{self.host}/{self.repository}{mark}{self.reference}"

    @property
    def api_host(self) -> str:
        """Where the API is."""
        return _HUB_API if self.host == _HUB else self.host


def parse(name: str) -> Reference:
    """Take an image's name apart; a missing host is docker.io, a missing tag "latest"."""
    rest, _, digest = name.partition("@")
    first, slash, path = rest.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, path = _HUB, rest if slash else f"library/{rest}"
    repository, _, tag = path.partition(":")
    return Reference(first, repository, digest or tag or "latest")
