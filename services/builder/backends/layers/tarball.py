"""Layers: reproducible tar.gz files.

The same files give the same bytes: sorted, owned by root, without times, and the gzip header has
neither time nor name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LEVEL = 5
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A directory, file or link in a layer. `path` is relative to the image's root.

    A file has `content` or `file`, a link has `link`, and a directory none of them.
    """

    path: str
    content: bytes | None = None
    file: Path | None = None
    link: str = ""
    executable: bool = False


@dataclass(frozen=True)
class Layer:
    """A finished layer. `diff_id` is the digest of the tar, `digest` and `size` of the gzip."""

    digest: str
    diff_id: str
    size: int


def write(entries: Iterable[Entry], sink: IO[bytes]) -> Layer:
    """Write a layer of `entries`, whose parents are made."""
    packed = _Hashed(sink)
    with gzip.GzipFile("", "wb", _LEVEL, packed, mtime=0) as gz:  # pyright: ignore[reportArgumentType]
        plain = _Hashed(gz)
        sink_of_tar: Any = plain
        with tarfile.open(mode="w|", fileobj=sink_of_tar, format=tarfile.PAX_FORMAT) as tar:
            for entry in _with_parents(entries):
                _add(tar, entry)
    return Layer(packed.digest, plain.digest, packed.size)


def in_memory(entries: Iterable[Entry]) -> tuple[Layer, bytes]:
    """Return a small layer and its content."""
    sink = io.BytesIO()
    return write(entries, sink), sink.getvalue()


def to_file(entries: Iterable[Entry], path: Path) -> Layer:
    """Write a layer into a new file."""
    with path.open("xb") as sink:
        return write(entries, sink)


def tree(directory: Path, root: str) -> Iterator[Entry]:
    """Yield all below `directory` as it will stand below `root`."""
    yield Entry(root)
    for parent, directories, files in os.walk(directory):
        directories.sort()
        inside = os.path.relpath(parent, directory)
        above = root if inside == "." else f"{root}/{inside}"
        for name in directories:
            if not (Path(parent) / name).is_symlink():
                yield Entry(f"{above}/{name}")
        for name in [*files, *(d for d in directories if (Path(parent) / d).is_symlink())]:
            path = Path(parent) / name
            if path.is_symlink():
                yield Entry(f"{above}/{name}", link=os.readlink(path))
            else:
                executable = bool(path.stat().st_mode & 0o111)
                yield Entry(f"{above}/{name}", file=path, executable=executable)


def _with_parents(entries: Iterable[Entry]) -> Iterator[Entry]:
    found = {entry.path: entry for entry in entries}
    for path in list(found):
        parts = path.split("/")
        for length in range(1, len(parts)):
            found.setdefault("/".join(parts[:length]), Entry("/".join(parts[:length])))
    # By components: a directory comes before what is in it.
    return (found[path] for path in sorted(found, key=lambda path: path.split("/")))


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path)
    info.mode = 0o644
    if entry.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif entry.content is not None:
        info.mode = 0o755 if entry.executable else 0o644
        info.size = len(entry.content)
        tar.addfile(info, io.BytesIO(entry.content))
    elif entry.file is not None:
        info.mode = 0o755 if entry.executable else 0o644
        with entry.file.open("rb") as source:
            info.size = os.fstat(source.fileno()).st_size
            tar.addfile(info, source)
    else:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)


class _Hashed:
    """Passes on what is written, and knows its digest."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        self._sink.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"
