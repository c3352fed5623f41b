"""The build context: a tar.gz, made piece by piece and never held whole."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from services.builder.backends.environment.threads import in_thread

Files: TypeAlias = Mapping[str, "bytes | Path"]
"""What a context holds: content, or the file or directory that has it, by path in the context."""

_PIECE = 256 * 1024


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        piece = bytes(data)  # pyright: ignore[reportArgumentType]
        self._held += piece
        return len(piece)

    def take(self, least: int) -> bytes:
        """Return what is held once it has `least` bytes, else nothing."""
        if len(self._held) < least:
            return b""
        taken = bytes(self._held)
        self._held.clear()
        return taken


def pack(files: Files) -> Iterator[bytes]:
    """Yield a tar.gz of `files`, sorted, without times and owners: the same for the same files."""
    sink = _Sink()
    # Not "w:gz": the gzip header of that has the time in it.
    with tarfile.open(fileobj=sink, mode="w|gz", format=tarfile.GNU_FORMAT) as tar:
        for name, content in sorted(_flat(files)):
            if isinstance(content, bytes):
                tar.addfile(_entry(name, len(content), 0o644), io.BytesIO(content))
            else:
                status = content.stat()
                mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                with content.open("rb") as file:
                    tar.addfile(_entry(name, status.st_size, mode), file)
            if piece := sink.take(_PIECE):
                yield piece
    yield sink.take(0)


async def stream(files: Files) -> AsyncIterator[bytes]:
    """Yield `pack(files)`, each piece made in a thread."""
    pieces = pack(files)
    while (piece := await in_thread(next, pieces, None)) is not None:
        yield piece


def _flat(files: Files) -> Iterator[tuple[str, bytes | Path]]:
    for name, content in files.items():
        if isinstance(content, Path) and content.is_dir():
            for path in content.rglob("*"):
                if path.is_file():
                    yield f"{name}/{path.relative_to(content).as_posix()}".lstrip("/"), path
        else:
            yield name, content


def _entry(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = mode
    return entry
