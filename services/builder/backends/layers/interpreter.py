"""Which Python a base image has, by looking into its layers."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = re.compile(r"(?P<directory>(?:[^/]+/)*bin)/python(?P<version>3(?:\.\d+)?)")
_FULL = re.compile(r"3\.\d+\.\d+")


@dataclass(frozen=True)
class ImagePython:
    """`path` is absolute. `version` is "3.13.1" where the image says so, else "3.13"."""

    path: str
    version: str

    @property
    def release(self) -> str:
        """Major and minor. Example: "3.13"."""
        return ".".join(self.version.split(".")[:2])


def programs_in(layer: Path) -> dict[str, str]:
    """Return the Python programs of a layer, a tar with any compression: path to link target.

    The target is "" for what is no link. Example: {"usr/bin/python3": "python3.13", ...}.
    """
    found: dict[str, str] = {}
    with tarfile.open(layer, "r|*") as tar:
        for member in tar:
            name = posixpath.normpath(member.name).lstrip("/")
            if _PROGRAM.fullmatch(name) and not member.isdir():
                found[name] = member.linkname if member.issym() else ""
    return found


def choose(programs: Mapping[str, str], environ: Mapping[str, str]) -> ImagePython | None:
    """Return the Python that `python3` means in an image with this environment."""
    path = environ.get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for directory in path.split(":"):
        here = directory.strip("/")
        link = posixpath.basename(programs.get(f"{here}/python3", ""))
        versions = _versions(programs, here)
        named = re.fullmatch(r"python(3\.\d+)", link)
        release = (
            named[1] if named and named[1] in versions else max(versions, key=_key, default="")
        )
        if release:
            told = environ.get("PYTHON_VERSION", "")
            full = told if _FULL.fullmatch(told) and told.startswith(f"{release}.") else release
            return ImagePython(f"/{here}/python{release}", full)
    return None


def environ_of(pairs: Iterable[str]) -> dict[str, str]:
    """Return the environment of an image's configuration ("NAME=value" each)."""
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _versions(programs: Mapping[str, str], directory: str) -> set[str]:
    matches = (_PROGRAM.fullmatch(path) for path in programs)
    return {
        match["version"]
        for match in matches
        if match and match["directory"] == directory and "." in match["version"]
    }


def _key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
