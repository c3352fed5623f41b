"""The build context as a tar.gz."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from services.builder.backends.kaniko.context import pack, stream


def unpacked(content: bytes) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each file."""
    found: dict[str, tuple[int, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = (member.mode, file.read())
    return found


def test_it_holds_contents_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "run").write_text("run")
    (tmp_path / "inner" / "run").chmod(0o700)
    (tmp_path / "top").write_text("top")
    files = {"Dockerfile": b"FROM x\n", "one": tmp_path / "top", "source": tmp_path}
    assert unpacked(b"".join(pack(files))) == {
        "Dockerfile": (0o644, b"FROM x\n"),
        "one": (0o644, b"top"),
        "source/inner/run": (0o755, b"run"),
        "source/top": (0o644, b"top"),
    }


def test_an_archive_of_its_own_stands_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    assert list(unpacked(b"".join(pack({"": tmp_path})))) == ["Dockerfile"]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    first = b"".join(pack({"a": tmp_path / "file", "b": b"y"}))
    os.utime(tmp_path / "file", (1, 1))
    assert b"".join(pack({"b": b"y", "a": tmp_path / "file"})) == first


async def test_it_is_made_in_pieces() -> None:
    files = {str(number): os.urandom(512 * 1024) for number in range(8)}
    pieces = [piece async for piece in stream(files)]
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 2 * 1024 * 1024
    assert {n: c for n, (_, c) in unpacked(b"".join(pieces)).items()} == files
