"""What an unpacked Python project is: its entry, and what it requires."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.builder.backends.environment import pep723, requirements
from services.builder.backends.environment.pep723 import Metadata
from services.builder.backends.environment.requirements import Requested
from services.builder.failures import BuildFailed

HANDLER = "handler.py"
_PROGRAMS = ("main.py", "app.py", "server.py", "script.py")
_LARGEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Project:
    """`entry` is relative to the project's directory; `is_handler` tells how it is started."""

    entry: str
    is_handler: bool
    metadata: Metadata | None
    requested: Requested


def read(directory: Path) -> Project:
    """Look at an unpacked project. Raises `BuildFailed`.

    The entry is handler.py, else main.py, app.py, server.py or script.py, else the only other file
    at the top that has a script block. Requirements come from the entry's block, else
    requirements.txt, else pyproject.toml.
    """
    entry = _entry(directory)
    metadata = pep723.read_optional(text_of(directory / entry))
    return Project(entry, entry == HANDLER, metadata, _requested(directory, metadata))


def _entry(directory: Path) -> str:
    for name in (HANDLER, *_PROGRAMS):
        if (directory / name).is_file():
            return name
    programs = [
        path.name for path in sorted(directory.glob("*.py")) if "# /// script" in text_of(path)
    ]
    if len(programs) == 1:
        return programs[0]
    found = f" (there are several with a script block: {', '.join(programs)})" if programs else ""
    raise BuildFailed(
        "ARCHIVE_INVALID",
        f"the archive holds no entry point{found}",
        "put a handler.py with handler(event, ctx), or a main.py that serves HTTP, at its top",
    )


def _requested(directory: Path, metadata: Metadata | None) -> Requested:
    if metadata is not None:
        return requirements.from_metadata(metadata)
    listed, project = directory / "requirements.txt", directory / "pyproject.toml"
    if listed.is_file():
        return requirements.from_requirements_txt(text_of(listed))
    if project.is_file():
        return requirements.from_pyproject(text_of(project))
    return Requested()


def text_of(path: Path) -> str:
    """Return a file's text. Raises `BuildFailed` when it is none."""
    try:
        content = path.read_bytes()
        if len(content) > _LARGEST:
            raise BuildFailed(
                "ARCHIVE_INVALID", f"{path.name} is too large for source code", "make it smaller"
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BuildFailed(
            "ARCHIVE_INVALID", f"{path.name} is not UTF-8: {error}", "save it as UTF-8"
        ) from error
