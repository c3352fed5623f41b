"""Files as tar.gz: the same files give the same bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

_EXECUTABLE = 0o100


def pack(directory: Path) -> bytes:
    """Return all files below `directory`, in the order of their paths, as tar.gz.

    Owners and times are left out, and modes are 0644 or 0755. Directories come with their files.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        files = (path for path in directory.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda each: each.relative_to(directory).as_posix()):
            _add(archive, path, path.relative_to(directory).as_posix())
    return packed.getvalue()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.stat()
    entry = tarfile.TarInfo(name)
    entry.size = status.st_size
    entry.mode = 0o755 if status.st_mode & _EXECUTABLE else 0o644
    with path.open("rb") as content:
        archive.addfile(entry, content)
