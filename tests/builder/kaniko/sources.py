"""Sources, and who is told of their builds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Generator
from contextlib import contextmanager

from mayfly.v1.source_pb2 import Stage

GO = """package function

func Handle(e Event, c Context) (any, error) {
	return map[string]string{"hi": e.Query["name"]}, nil
}
"""


def archive(**files: str) -> bytes:
    """Return a tar.gz of files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


class Quiet:
    """Keeps what it is told of a build; see `backends.base.Progress`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def detail(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def step(self, stage: Stage.ValueType) -> Generator[Quiet]:
        yield self

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Generator[None]:
        yield
