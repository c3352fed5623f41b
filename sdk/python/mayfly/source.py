"""What is deployed: code, a script, or a project, read from where it lies."""

from __future__ import annotations

import ast
import gzip
import io
import os
import re
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

Kind = Literal["handler", "script", "archive", "image"]

# Never part of a function: version control, environments, caches, and secrets of the workstation.
EXCLUDED = (
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    ".env",
    "__pycache__",
    "*.pyc",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".nox",
    "node_modules",
    "*.egg-info",
    ".idea",
    ".vscode",
    ".DS_Store",
)
ARCHIVES = (".tar.gz", ".tgz", ".zip")

# PEP 723's own expression, for a block of type "script".
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_HANDLER_LINE = re.compile(r"(?m)^(async\s+def|def|class)\s+handler\b|^handler\s*=")
_NOT_LABEL = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True)
class Source:
    """What a function is made of."""

    kind: Kind
    # Text of a handler, script or image reference; bytes of an archive.
    content: str | bytes
    # The runtime's name that its form suggests; empty leaves it to Mayfly.
    runtime: str = ""
    # The id that it asks for in `[tool.mayfly]`, or that its file name suggests; may be empty.
    name: str = ""

    @classmethod
    def handler(cls, code: str, runtime: str = "", name: str = "") -> Source:
        """Code of one file that defines `handler(event, ctx)`, or `Handle` in Go."""
        return cls("handler", code, runtime, name)

    @classmethod
    def script(cls, code: str, name: str = "") -> Source:
        """A Python program that serves HTTP itself."""
        return cls("script", code, "python", name)

    @classmethod
    def archive(cls, content: bytes, runtime: str = "", name: str = "") -> Source:
        """A project as tar.gz or zip."""
        return cls("archive", content, runtime, name)

    @classmethod
    def image(cls, reference: str, name: str = "") -> Source:
        """An OCI image that is already built."""
        return cls("image", reference, name=name)

    @classmethod
    def from_text(cls, text: str, name: str = "") -> Source:
        """Decide from the code itself whether it is Go, a script or a handler."""
        if re.search(r"(?m)^package\s+\w+\s*$", text) and "func " in text:
            return cls.handler(text, "go", name)
        return from_python(text, name)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Source:
        """Read a file or a directory.

        Raises `OSError` when it cannot be read, and `ValueError` when it is nothing to deploy.
        """
        found = Path(path)
        if found.is_dir():
            return from_directory(found)
        if found.name.endswith(ARCHIVES):
            suffix = next(s for s in ARCHIVES if found.name.endswith(s))
            return cls.archive(found.read_bytes(), name=label(found.name.removesuffix(suffix)))
        try:
            text = found.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{found}: is not UTF-8 text, nor named {_names()}") from error
        name = label(found.stem)
        if found.suffix == ".go":
            return cls.handler(text, "go", name)
        if found.suffix == ".py":
            return from_python(text, name)
        return cls.from_text(text, name)


def from_python(code: str, name: str = "") -> Source:
    """Return a script for a program with a PEP 723 block and no handler, and a handler else."""
    name = asked_name(code) or name
    if _BLOCK.search(code) and not defines_handler(code):
        return Source.script(code, name)
    return Source.handler(code, "python", name)


def defines_handler(code: str) -> bool:
    """Whether a Python module's top level binds the name `handler`."""
    try:
        module = ast.parse(code)
    except (SyntaxError, ValueError):
        return _HANDLER_LINE.search(code) is not None
    return any("handler" in _bound(statement) for statement in module.body)


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign):
        return {t.id for t in statement.targets if isinstance(t, ast.Name)}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return set()


def asked_name(code: str) -> str:
    """Return `[tool.mayfly] name` of a script block; empty when there is none or it is malformed.

    A malformed block is for the builder to explain, which knows all the rules.
    """
    found = _BLOCK.search(code)
    if not found:
        return ""
    lines = found["content"].splitlines(keepends=True)
    text = "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        name = tomllib.loads(text).get("tool", {}).get("mayfly", {}).get("name", "")
    except (tomllib.TOMLDecodeError, AttributeError):
        return ""
    return name if isinstance(name, str) else ""


def label(text: str) -> str:
    """Return the DNS label nearest to a file's name. Example: "My_Hello 2" → "my-hello-2"."""
    return _NOT_LABEL.sub("-", text.lower()).strip("-")[:63].strip("-")


def from_directory(directory: Path) -> Source:
    """Return a project as tar.gz; the same files give the same bytes, whatever their times.

    Raises `ValueError` when there is nothing in it.
    """
    files = sorted(_files(directory, directory))
    if not files:
        raise ValueError(f"{directory}: there is nothing in it to deploy")
    names = {path.relative_to(directory).as_posix() for path in files}
    go = "go.mod" in names or not any(name.endswith(".py") for name in names)
    runtime = "go" if go and any(name.endswith(".go") for name in names) else "python"
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files:
            content = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(directory).as_posix())
            member.size = len(content)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            archive.addfile(member, io.BytesIO(content))
    name = label(directory.resolve().name)
    return Source.archive(packed.getvalue(), runtime, name)


def _files(directory: Path, root: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in EXCLUDED):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            continue  # a link out of the project would pack files that nobody meant
        if path.is_dir():
            if not path.is_symlink():
                yield from _files(path, root)
        elif path.is_file():
            yield path


def _names() -> str:
    return ", ".join(f"*{suffix}" for suffix in ARCHIVES)
