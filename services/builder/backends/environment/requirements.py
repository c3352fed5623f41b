"""What may be required, and what is refused.

Only names, versions and markers (PEP 508) that the operator's indexes resolve. A URL, a path, a
version control system or an index of the source's own would make the platform call any address.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from packaging.requirements import InvalidRequirement, Requirement

from services.builder.backends.environment.pep723 import Metadata
from services.builder.failures import BuildFailed

_ONLY_NAMES = (
    'name packages by name and version, such as "httpx>=0.27"; include your own code in an archive'
)
_ADDRESSES = re.compile(r"://|^\.{0,2}/|\.whl$|\.tar\.gz$|\.zip$")
# Keys of [tool.uv] that choose where packages come from.
_INDEX_KEYS = frozenset(
    {
        "index",
        "index-url",
        "extra-index-url",
        "default-index",
        "find-links",
        "no-index",
        "index-strategy",
        "keyring-provider",
        "sources",
        "allow-insecure-host",
        "trusted-host",
        "workspace",
        "pip",
        "python-install-mirror",
        "pypy-install-mirror",
        "publish-url",
        "check-url",
        "dependency-metadata",
    }
)
# Keys that a resolution needs to know, with the option that carries each.
_OPTION_KEYS = {
    "exclude-newer": "--exclude-newer",
    "prerelease": "--prerelease",
    "resolution": "--resolution",
}
_INDEX_OPTIONS = (
    "-i",
    "--index-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "--no-index",
    "--trusted-host",
)
_SOURCE_OPTIONS = ("-e", "--editable", "-r", "--requirement", "-c", "--constraint")


@dataclass(frozen=True)
class Requested:
    """What a source asks to have installed.

    Requirements are normalised PEP 508 strings, `options` are uv's, `hashes` are those given for
    a requirement, by its normalised name.
    """

    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hashes: Mapping[str, tuple[str, ...]] | None = None
    requires_python: str = ""
    notes: tuple[str, ...] = ()

    def fields(self) -> list[str]:
        """Everything besides the requirements that decides a resolution."""
        pinned = sorted(f"{name} {h}" for name, hs in (self.hashes or {}).items() for h in hs)
        return [
            *self.options,
            "constraints",
            *sorted(self.constraints),
            "overrides",
            *sorted(self.overrides),
            "hashes",
            *pinned,
        ]


def from_metadata(metadata: Metadata) -> Requested:
    """Return what a PEP 723 block asks for. Raises `BuildFailed`."""
    table = metadata.tool.get("uv", {})
    if not isinstance(table, dict):
        raise BuildFailed(
            "SCRIPT_METADATA",
            "[tool.uv] in the script block has to be a table",
            "write it as a table or leave it out",
            line=metadata.line,
        )
    uv = cast("dict[str, Any]", table)
    refuse_indexes(uv, metadata.line)
    options: list[str] = []
    for key, option in _OPTION_KEYS.items():
        if key in uv:
            if not isinstance(uv[key], str):
                raise BuildFailed(
                    "SCRIPT_METADATA",
                    f"tool.uv.{key} in the script block has to be a string",
                    "put it between quotes",
                    line=metadata.line,
                )
            options.append(f"{option}={uv[key]}")
    handled = {*_OPTION_KEYS, "constraint-dependencies", "override-dependencies"}
    left_out = (f"tool.uv.{key} is left out of account" for key in uv if key not in handled)
    return Requested(
        requirements=parse(metadata.dependencies, metadata.line),
        constraints=_listed(uv, "constraint-dependencies", metadata.line),
        overrides=_listed(uv, "override-dependencies", metadata.line),
        options=tuple(options),
        requires_python=metadata.requires_python,
        notes=(*metadata.notes, *left_out),
    )


def refuse_indexes(uv: Mapping[str, Any], line: int = 0) -> None:
    """Raise `BuildFailed` when a [tool.uv] table says where packages come from."""
    for key in uv:
        if key in _INDEX_KEYS:
            raise BuildFailed(
                "INDEX_REFUSED",
                f"[tool.uv] names where packages come from ({key}); packages come from the indexes "
                "of this Mayfly",
                f"remove {key} from [tool.uv], or ask the operator to add the index "
                "(UV_INDEX of the builder)",
                line=line,
            )


def parse(texts: Iterable[str], line: int = 0) -> tuple[str, ...]:
    """Return normalised requirements. Raises `BuildFailed` for one that is refused."""
    return tuple(dict.fromkeys(str(_parsed(text, line)) for text in texts))


def _parsed(text: str, line: int) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        said = str(error).split("\n", 1)[0]
        address = bool(_ADDRESSES.search(text.strip()))
        message = (
            f"the requirement {text!r} is an address or a path"
            if address
            else f"the requirement {text!r} cannot be read: {said}"
        )
        raise BuildFailed("REQUIREMENT_REFUSED", message, _ONLY_NAMES, line=line) from error
    # A name may end like a file, which an installer then takes for one.
    if requirement.url is not None or _ADDRESSES.search(requirement.name):
        raise BuildFailed(
            "REQUIREMENT_REFUSED",
            f"the requirement {text!r} is an address; only names that this Mayfly's indexes know "
            "can be required",
            _ONLY_NAMES,
            line=line,
        )
    return requirement


def _listed(table: Mapping[str, Any], key: str, line: int) -> tuple[str, ...]:
    value: object = table.get(key, [])
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None or not all(isinstance(item, str) for item in items):
        raise BuildFailed(
            "SCRIPT_METADATA",
            f"tool.uv.{key} in the script block has to be a list of strings",
            "write it as a list of strings",
            line=line,
        )
    return parse(cast("list[str]", items), line)


def from_requirements_txt(text: str) -> Requested:
    """Return what a requirements file asks for
    (https://pip.pypa.io/en/stable/reference/requirements-file-format/). Raises `BuildFailed`.
    """
    requirements: list[str] = []
    hashes: dict[str, tuple[str, ...]] = {}
    for number, line in _logical_lines(text):
        _refuse_option(line, number)
        words = line.split(" --")
        requirement = _parsed(words[0].strip(), number)
        requirements.append(str(requirement))
        found = [word for word in shlex.split(line) if word.startswith("--hash=")]
        if found:
            hashes[canonical(requirement.name)] = tuple(found)
    return Requested(requirements=tuple(dict.fromkeys(requirements)), hashes=hashes or None)


def _refuse_option(line: str, number: int) -> None:
    if not line.startswith("-"):
        return
    option = re.split(r"[\s=]", line, maxsplit=1)[0]
    if option in _INDEX_OPTIONS:
        raise BuildFailed(
            "INDEX_REFUSED",
            f"requirements.txt names where packages come from ({option})",
            f"remove {option}; packages come from the indexes of this Mayfly",
            line=number,
            source_line=line,
        )
    why = "is a path or another file" if option in _SOURCE_OPTIONS else "is an option"
    raise BuildFailed(
        "REQUIREMENT_REFUSED",
        f"the line {line!r} of requirements.txt {why}, which is not supported",
        "list the packages themselves, one a line",
        line=number,
        source_line=line,
    )


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Yield (number of its first line, line) with continuations joined and comments removed."""
    pending = ""
    first = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw)
        first = first if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = (pending + line).strip()
        pending = ""
        if whole:
            yield first, whole
    if pending.strip():
        yield first, pending.strip()


def from_pyproject(text: str) -> Requested:
    """Return what a project's table asks for
    (https://packaging.python.org/en/latest/specifications/pyproject-toml/). Raises `BuildFailed`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BuildFailed(
            "SCRIPT_METADATA", f"pyproject.toml is no valid TOML: {error}", "correct it"
        ) from error
    tool = document.get("tool", {})
    uv: Any = cast("dict[str, Any]", tool).get("uv", {}) if isinstance(tool, dict) else {}
    if isinstance(uv, dict):
        refuse_indexes(cast("dict[str, Any]", uv))
    project = document.get("project", {})
    table = cast("dict[str, Any]", project) if isinstance(project, dict) else {}
    dependencies: Any = table.get("dependencies", [])
    requires_python: Any = table.get("requires-python", "")
    listed = cast("Sequence[object]", dependencies) if isinstance(dependencies, list) else None
    if listed is None or not all(isinstance(each, str) for each in listed):
        raise BuildFailed(
            "SCRIPT_METADATA",
            "project.dependencies in pyproject.toml has to be a list of strings",
            'write it such as dependencies = ["httpx>=0.27"]',
        )
    if not isinstance(requires_python, str):
        raise BuildFailed(
            "SCRIPT_METADATA",
            "project.requires-python in pyproject.toml has to be a string",
            'write it such as requires-python = ">=3.11"',
        )
    return Requested(
        requirements=parse(cast("list[str]", dependencies)), requires_python=requires_python
    )


def canonical(name: str) -> str:
    """Return a project's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_hashes(resolved: Sequence[str], hashes: Mapping[str, tuple[str, ...]] | None) -> list[str]:
    """Return resolved lines ("name==version") with the hashes that the source gave for them."""
    if not hashes:
        return list(resolved)
    lines: list[str] = []
    for line in resolved:
        name = canonical(re.split(r"[=\s;\[]", line, maxsplit=1)[0])
        lines.append(" ".join((line, *hashes.get(name, ()))))
    return lines
