"""Unpacking."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.builder.backends.environment.archive import Limits, unpack
from services.builder.backends.environment.project import read
from services.builder.failures import BuildFailed

LIMITS = Limits(bytes=100_000, files=20)


def tar(*members: tuple[str, Any]) -> bytes:
    """Return an archive of (name, content); content may be a dict of TarInfo's attributes."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def zipped(*members: tuple[str, bytes], attr: int = 0) -> bytes:
    """Return a zip of (name, content)."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = attr << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


@pytest.mark.parametrize("pack", [tar, zipped])
def test_files_have_modes_of_our_own(tmp_path: Path, pack: Any) -> None:
    content = pack(("a/b.py", b"x = 1\n"), ("handler.py", b"y"))
    assert unpack(content, tmp_path / "out", LIMITS) == 7
    assert (tmp_path / "out/a/b.py").read_bytes() == b"x = 1\n"
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/handler.py").stat().st_mode) == 0o644


def test_special_bits_are_dropped_and_executables_stay_so(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("run")
        info.size, info.mode = 1, 0o6755
        archive.addfile(info, io.BytesIO(b"x"))
    unpack(content.getvalue(), tmp_path / "out", LIMITS)
    assert stat.S_IMODE((tmp_path / "out/run").stat().st_mode) == 0o755


def test_the_only_directory_is_left_out(tmp_path: Path) -> None:
    unpack(
        tar(("p-1/", {"type": tarfile.DIRTYPE}), ("p-1/handler.py", b"x")), tmp_path / "o", LIMITS
    )
    assert (tmp_path / "o/handler.py").exists()


BAD = {
    "parent": tar(("../x", b"")),
    "inner parent": tar(("a/../../x", b"")),
    "absolute": tar(("/tmp/x", b"")),
    "symlink": tar(("x", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    "symlink inside": tar(("x", {"type": tarfile.SYMTYPE, "linkname": "y"}), ("y", b"")),
    "hard link": tar(("x", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})),
    "device": tar(("x", {"type": tarfile.CHRTYPE})),
    "pipe": tar(("x", {"type": tarfile.FIFOTYPE})),
    "too large": tar(("x", b"0" * 200_000)),
    "many together": tar(*((f"f{n}", b"0" * 40_000) for n in range(5))),
    "too many": tar(*((f"f{n}", b"") for n in range(30))),
    "twice": tar(("x", b"1"), ("x", b"2")),
    "file and directory": tar(("x", b"1"), ("x/y", b"2")),
    "empty": tar(),
    "nothing": b"",
    "no archive": b"not an archive",
    "cut": tar(("x", b"0" * 5000))[:-20],
    "zip parent": zipped(("../x", b"")),
    "zip absolute": zipped(("/x", b"")),
    "zip backslash": zipped(("..\\x", b"")),
    "zip symlink": zipped(("x", b"/etc/passwd"), attr=stat.S_IFLNK | 0o777),
    "zip too large": zipped(("x", b"0" * 200_000)),
    "zip cut": zipped(("x", b"0" * 5000))[:-30],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archives(tmp_path: Path, case: str) -> None:
    with pytest.raises(BuildFailed) as raised:
        unpack(BAD[case], tmp_path / "out", LIMITS)
    assert raised.value.reason == "ARCHIVE_INVALID"
    assert raised.value.fix
    outside = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert outside == []


def test_a_zip_that_lies_about_its_size_is_stopped(tmp_path: Path) -> None:
    content = zipped(("x", b"0" * 200_000))
    size = (200_000).to_bytes(4, "little")
    lying = content.replace(size, (10).to_bytes(4, "little"))
    with pytest.raises(BuildFailed):
        unpack(lying, tmp_path / "out", LIMITS)


def project(tmp_path: Path, **files: str) -> Any:
    """Read a project of these files; "__" in a name stands for a dot."""
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return read(tmp_path)


BLOCK = '# /// script\n# dependencies = ["six"]\n# ///\n'


def test_a_handler_comes_first(tmp_path: Path) -> None:
    found = project(tmp_path, handler__py="x", main__py="y", requirements__txt="six\n")
    assert (found.entry, found.is_handler) == ("handler.py", True)
    assert found.requested.requirements == ("six",)


def test_the_block_comes_before_files(tmp_path: Path) -> None:
    found = project(tmp_path, app__py=BLOCK, requirements__txt="rich\n")
    assert (found.entry, found.is_handler) == ("app.py", False)
    assert found.requested.requirements == ("six",)


def test_the_only_file_with_a_block_is_the_entry(tmp_path: Path) -> None:
    found = project(tmp_path, notes__py=BLOCK, more__py="x", pyproject__toml="[project]\n")
    assert found.entry == "notes.py"


@pytest.mark.parametrize(
    "files", [{"a__py": "x"}, {"a__py": BLOCK, "b__py": BLOCK}, {"a__txt": ""}]
)
def test_no_entry(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(BuildFailed) as raised:
        project(tmp_path, **files)
    assert raised.value.reason == "ARCHIVE_INVALID"


def test_an_entry_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_bytes(b"\xff\xfe")
    with pytest.raises(BuildFailed) as raised:
        read(tmp_path)
    assert "UTF-8" in raised.value.message
