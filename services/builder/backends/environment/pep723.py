"""Inline script metadata (https://peps.python.org/pep-0723/)."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, cast

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from services.builder.failures import BuildFailed

# The expression that the PEP gives, to the letter.
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_OPENING = re.compile(r"(?m)^# /// script[ \t]*$")
_KNOWN = ("dependencies", "requires-python", "tool")
_AT_LINE = re.compile(r"\(at line (\d+), column (\d+)\)")
EXAMPLE = '# /// script\n# requires-python = ">=3.11"\n# dependencies = ["fastapi"]\n# ///'


@dataclass(frozen=True)
class Metadata:
    """What a block says. `line` is that of its opening in the file, counted from 1."""

    requires_python: str = ""
    dependencies: tuple[str, ...] = ()
    tool: dict[str, Any] = field(default_factory=dict[str, Any])
    line: int = 0
    notes: tuple[str, ...] = ()


def read_script(text: str) -> Metadata:
    """Return the metadata of a script, which has exactly one block. Raises `BuildFailed`."""
    metadata = read_optional(text)
    if metadata is None:
        raise BuildFailed(
            "SCRIPT_BLOCKS",
            "a script needs one PEP 723 block and this one has none",
            f"put a block at its top, such as:\n{EXAMPLE}",
        )
    return metadata


def read_optional(text: str) -> Metadata | None:
    """Return the metadata of the only block, None where there is none. Raises `BuildFailed`."""
    text = text.replace("\r\n", "\n")
    # The expression wants a line end after what it matches up to.
    blocks = [match for match in _BLOCK.finditer(text) if match["type"] == "script"]
    if len(blocks) > 1:
        lines = [_line_of(text, match.start()) for match in blocks]
        raise BuildFailed(
            "SCRIPT_BLOCKS",
            f"there are {len(blocks)} script blocks, at lines {_listed(lines)}; one is allowed",
            "merge them into one",
            line=lines[1],
            source_line="# /// script",
        )
    if not blocks:
        opening = _OPENING.search(text)
        if opening is None:
            return None
        line = _line_of(text, opening.start())
        raise BuildFailed(
            "SCRIPT_BLOCKS",
            f"the script block opened at line {line} is never closed, or a line in it does not "
            "begin with '# '",
            "close the block with a line '# ///', with every line between beginning with '# '",
            line=line,
            source_line=opening[0],
        )
    block = blocks[0]
    return _read(_content(block["content"]), _line_of(text, block.start()))


def _content(commented: str) -> str:
    lines = commented.splitlines(keepends=True)
    return "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)


def _read(content: str, line: int) -> Metadata:
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise _bad_toml(str(error), content, line) from error
    tool = table.get("tool", {})
    if not isinstance(tool, dict):
        raise wrong_type("tool", "a table", line)
    return Metadata(
        requires_python=_specifier(table.get("requires-python", ""), line),
        dependencies=strings(table.get("dependencies", []), "dependencies", line),
        tool=cast("dict[str, Any]", tool),
        line=line,
        notes=_unknown(table, line),
    )


def strings(value: object, key: str, line: int) -> tuple[str, ...]:
    """Return `value` if it is a list of strings. Raises `BuildFailed`."""
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None or not all(isinstance(item, str) for item in items):
        raise wrong_type(key, "a list of strings", line)
    return tuple(cast("list[str]", items))


def wrong_type(key: str, wanted: str, line: int) -> BuildFailed:
    """Return the failure of a key whose value is of another type than `wanted`."""
    return BuildFailed(
        "SCRIPT_METADATA",
        f"{key} in the script block has to be {wanted}",
        f"write {key} as {wanted}, such as:\n{EXAMPLE}",
        line=line,
    )


def _specifier(value: object, line: int) -> str:
    if not isinstance(value, str):
        raise wrong_type("requires-python", 'a string such as ">=3.11"', line)
    try:
        SpecifierSet(value)
    except InvalidSpecifier as error:
        raise BuildFailed(
            "SCRIPT_METADATA",
            f"requires-python in the script block is no version specifier: {value!r}",
            'write it such as ">=3.11"',
            line=line,
        ) from error
    return value


def _unknown(table: dict[str, Any], line: int) -> tuple[str, ...]:
    """Refuse what looks like a typing error, note the rest."""
    notes: list[str] = []
    for key in table:
        if key in _KNOWN:
            continue
        near = difflib.get_close_matches(key.replace("_", "-"), _KNOWN, n=1, cutoff=0.7)
        if near:
            raise BuildFailed(
                "SCRIPT_METADATA",
                f"{key} in the script block is no key of PEP 723",
                f"did you mean {near[0]}?",
                line=line,
            )
        notes.append(f"{key} in the script block is no key of PEP 723 and is left out of account")
    return tuple(notes)


def _bad_toml(message: str, content: str, line: int) -> BuildFailed:
    lines = content.splitlines()
    place = _AT_LINE.search(message)
    # "at end of document": the last line is where it is noticed.
    inner, column = (int(place[1]), int(place[2])) if place else (max(1, len(lines)), 0)
    text = lines[inner - 1] if inner <= len(lines) else ""
    return BuildFailed(
        "SCRIPT_METADATA",
        f"the script block is no valid TOML: {_AT_LINE.sub('', message).strip()}",
        "correct this line of the block",
        line=line + inner,
        # Two characters stand before it in the file.
        column=column + 2 if column else 0,
        source_line=f"# {text}",
    )


def _line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
