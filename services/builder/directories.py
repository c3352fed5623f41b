"""Where builds keep what they make, below the data directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Directories:
    """`root` is `<data_dir>/builds`. All on one file system: moving is one step."""

    root: Path

    @property
    def artefacts(self) -> Path:
        """Functions' own files: `<build id>.<build uid>/`."""
        return self.root / "artefacts"

    @property
    def environments(self) -> Path:
        """Environments: `<digest>.<environment uid>/`."""
        return self.root / "environments"

    @property
    def temporary(self) -> Path:
        """What is being made: `<build uid>.<claim token>.files/` and `.work/`."""
        return self.root / "temporary"

    @property
    def cache(self) -> Path:
        """uv's cache of wheels; environments are hard links into it."""
        return self.root / "cache"

    @property
    def go_cache(self) -> Path:
        """The Go compiler's cache."""
        return self.root / "go-cache"

    @property
    def interpreters(self) -> Path:
        """Pythons that uv has downloaded."""
        return self.root / "interpreters"

    def artefact(self, build: str, uid: str) -> Path:
        """Return the directory of a build's artefact."""
        return self.artefacts / f"{build}.{uid}"

    def workspace(self, uid: str, token: str) -> Path:
        """Return the directory in which one try of a build works."""
        return self.temporary / f"{uid}.{token}.work"

    def files(self, uid: str, token: str) -> Path:
        """Return the directory that becomes the artefact."""
        return self.temporary / f"{uid}.{token}.files"

    def environment(self, digest: str, uid: str) -> Path:
        """Return the directory of an environment."""
        return self.environments / f"{digest}.{uid}"

    def prepare(self) -> None:
        """Make what is missing. Raises `OSError`."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        # Functions' users pass through to what they are given; nobody lists it.
        for path, mode in (
            (self.root, 0o711),
            (self.artefacts, 0o711),
            (self.environments, 0o711),
            (self.interpreters, 0o755),
            (self.temporary, 0o700),
            (self.cache, 0o700),
            (self.go_cache, 0o700),
        ):
            path.mkdir(exist_ok=True)
            path.chmod(mode)


def names(directory: Path) -> list[str]:
    """Return what is in a directory of ours, sorted."""
    return sorted(os.listdir(directory))


def remove(paths: Iterable[Path]) -> dict[Path, str]:
    """Remove trees, all that can be; return those that could not, with why. No error if gone."""
    failed: dict[Path, str] = {}
    for path in paths:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed[path] = f"{error.filename or path}: {error.strerror}"
    return failed
