"""Layers are reproducible, and hold what they were given."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from services.builder.backends.layers import tarball
from services.builder.backends.layers.tarball import Entry


def fill(directory: Path, names: list[str]) -> None:
    (directory / "sub").mkdir(parents=True)
    for name in names:
        (directory / name).write_text(name)
    (directory / "program").chmod(0o755)
    (directory / "link").symlink_to("b.py")


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    names = ["b.py", "a.py", "sub/c.py", "program"]
    fill(one, names)
    fill(two, names[::-1])
    for path in two.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    two.chmod(0o700)
    made, content = tarball.in_memory(tarball.tree(one, "function"))
    other = tarball.to_file(tarball.tree(two, "function"), tmp_path / "layer")
    assert other == made
    assert (tmp_path / "layer").read_bytes() == content
    (two / "a.py").write_text("changed")
    changed, _ = tarball.in_memory(tarball.tree(two, "function"))
    assert changed.digest != made.digest


def test_digests_are_of_what_they_say_and_entries_are_the_platforms_own(tmp_path: Path) -> None:
    fill(tmp_path / "fn", ["b.py", "program"])
    layer, content = tarball.in_memory(
        [
            Entry("mayfly/env/bin/python", link="/usr/bin/python3"),
            *tarball.tree(tmp_path / "fn", "fn"),
        ]
    )
    plain = gzip.decompress(content)
    assert layer.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert layer.size == len(content)
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == [
            "fn",
            "fn/b.py",
            "fn/link",
            "fn/program",
            "fn/sub",
            "mayfly",
            "mayfly/env",
            "mayfly/env/bin",
            "mayfly/env/bin/python",
        ]
        assert {(m.uid, m.gid, m.mtime, m.uname) for m in members.values()} == {(0, 0, 0, "")}
        modes = {name: member.mode for name, member in members.items()}
        assert (modes["fn"], modes["fn/b.py"], modes["fn/program"]) == (0o755, 0o644, 0o755)
        assert members["fn/link"].linkname == "b.py"
        read = tar.extractfile("fn/b.py")
        assert read is not None
        assert read.read() == b"b.py"
