"""Unpacking tar.gz and zip so that nothing gets outside, and nothing gets too large.

All entries are looked at before the first one is written; only ordinary files and directories are,
with modes of our own.
"""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from services.builder.failures import BuildFailed

_CHUNK = 1024 * 1024
_LONGEST_PATH = 1024
_FORMATS = "send a tar.gz or a zip of the project"


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to."""

    bytes: int
    files: int


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath
    executable: bool
    key: tarfile.TarInfo | zipfile.ZipInfo


_Open: TypeAlias = Callable[[_Entry], IO[bytes]]


def unpack(content: bytes, directory: Path, limits: Limits) -> int:
    """Unpack into `directory`, which is made; return the bytes written. Raises `BuildFailed`.

    A single directory that holds everything is left out, as archives of repositories have it.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                entries = list(_zip_entries(archive, limits))
                return _write(entries, lambda e: archive.open(e.key), directory, limits)  # pyright: ignore
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as tar:
            entries = list(_tar_entries(tar, limits))
            return _write(entries, lambda e: _opened(tar, e), directory, limits)
    except BuildFailed:
        raise
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        raise _invalid(f"the archive cannot be read: {error}", _FORMATS) from error


def _opened(tar: tarfile.TarFile, entry: _Entry) -> IO[bytes]:
    opened = tar.extractfile(entry.key)  # pyright: ignore[reportArgumentType]
    if opened is None:
        raise _invalid(f"{entry.path} cannot be read", _FORMATS)
    return opened


def _tar_entries(tar: tarfile.TarFile, limits: Limits) -> Iterator[_Entry]:
    total = 0
    for count, member in enumerate(tar, 1):
        _count(count, limits)
        path = _safe(member.name)
        if member.isdir():
            continue
        if member.issym() or member.islnk():
            raise _invalid(
                f"{member.name} is a link (to {member.linkname}), which is not taken",
                "put the file itself into the archive",
            )
        if not member.isreg():
            raise _invalid(f"{member.name} is a device or a pipe", "leave it out")
        total = _sum(total, member.size, limits)
        if path is not None:
            yield _Entry(path, bool(member.mode & stat.S_IXUSR), member)


def _zip_entries(archive: zipfile.ZipFile, limits: Limits) -> Iterator[_Entry]:
    total = 0
    for count, info in enumerate(archive.infolist(), 1):
        _count(count, limits)
        path = _safe(info.filename)
        mode = info.external_attr >> 16
        if info.is_dir():
            continue
        if stat.S_ISLNK(mode):
            raise _invalid(
                f"{info.filename} is a link, which is not taken",
                "put the file itself into the archive",
            )
        if info.flag_bits & 1:
            raise _invalid(f"{info.filename} is encrypted", "send it without a password")
        total = _sum(total, info.file_size, limits)
        if path is not None:
            yield _Entry(path, bool(mode & stat.S_IXUSR), info)


def _count(count: int, limits: Limits) -> None:
    if count > limits.files:
        raise _invalid(
            f"the archive holds more than {limits.files} files",
            "leave out what is generated or installed, such as .venv and node_modules",
        )


def _sum(total: int, size: int, limits: Limits) -> int:
    if size < 0 or total + size > limits.bytes:
        raise _too_large(limits)
    return total + size


def _too_large(limits: Limits) -> BuildFailed:
    return _invalid(
        f"the archive unpacks to more than {limits.bytes // (1024 * 1024)} MiB",
        "leave out what is generated or installed, such as .venv and node_modules",
    )


def _safe(name: str) -> PurePosixPath | None:
    """Return the path inside, None for the root itself. Raises `BuildFailed` for one outside."""
    path = PurePosixPath(name)
    inside = not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)
    if not inside or len(name) > _LONGEST_PATH or name[1:2] == ":":
        raise _invalid(
            f"the path {name[:200]!r} leads out of the archive or is no plain path",
            "archive the project's directory with relative paths",
        )
    return path if path.parts else None


def _write(entries: list[_Entry], opened: _Open, directory: Path, limits: Limits) -> int:
    if not entries:
        raise _invalid("the archive is empty", _FORMATS)
    if len({entry.path for entry in entries}) < len(entries):
        raise _invalid("the archive names a file twice", "name each file once")
    strip = _only_directory(entries)
    directory.mkdir()
    directory.chmod(0o755)
    total = 0
    for entry in entries:
        target = directory.joinpath(*entry.path.parts[strip:])
        _make_parents(target.parent, directory)
        with opened(entry) as source, target.open("xb") as sink:
            # No more is read of an entry than the size that was summed up before.
            while chunk := source.read(_CHUNK):
                total += len(chunk)
                sink.write(chunk)
        target.chmod(0o755 if entry.executable else 0o644)
    return total


def _make_parents(path: Path, root: Path) -> None:
    if path == root or path.is_dir():
        return
    _make_parents(path.parent, root)
    path.mkdir()
    path.chmod(0o755)


def _only_directory(entries: list[_Entry]) -> int:
    tops = {entry.path.parts[0] for entry in entries}
    return int(len(tops) == 1 and all(len(entry.path.parts) > 1 for entry in entries))


def _invalid(message: str, fix: str) -> BuildFailed:
    return BuildFailed("ARCHIVE_INVALID", message, fix)
