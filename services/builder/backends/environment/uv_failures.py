"""What uv's messages mean. Its own text is kept in the failure's message."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.builder.failures import BuildFailed

_UNREACHABLE = re.compile(
    r"error sending request|dns error|tcp connect error|connection (closed|reset|refused)"
    r"|timed? ?out|HTTP status server error|Request failed after|429 Too Many Requests"
    r"|request or response body error|error decoding response body|network is unreachable",
    re.IGNORECASE,
)
_DENIED = re.compile(r"401 Unauthorized|403 Forbidden|lack of valid authentication")
_UNKNOWN = re.compile(
    r"Because ([A-Za-z0-9._-]+) was not found in the (package registry|cache|prov)"
)
_NO_VERSION = re.compile(
    r"there (?:is|are) no versions? of ([A-Za-z0-9._-]+)"
    r"|[Oo]nly ([A-Za-z0-9._-]+)[<>=!~,.0-9a-z]* is available"
)
_PYTHON = re.compile(
    r"current Python version \(([0-9.a-z]+)\) does not satisfy Python([<>=!~0-9.,]+)"
)
_NO_WHEELS = re.compile(
    r"no usable wheels|no wheels with a matching|[Bb]uilding from source is disabled"
)
_BAD_OPTION = re.compile(r"invalid value '([^']*)' for '--([a-z-]+)")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_NOISE = re.compile(
    r"^(Using |Creating virtual|Activate with|Resolved |Prepared |Downloading | Downloaded )"
)


def classify(code: int, lines: Sequence[str]) -> BuildFailed:
    """Return the failure that uv's output tells of. `code` is its exit code."""
    text = redacted("\n".join(line for line in lines if not _NOISE.match(line)).strip())
    message = re.sub(r"^error: ", "", text) or f"uv ended with exit code {code} and said nothing"
    reason, fix = _meaning(code, text)
    return BuildFailed(reason, message, fix, exit_code=code)


def needs_sdist(failure: BuildFailed) -> bool:
    """Whether it failed because a requirement has only a source distribution."""
    return failure.reason == "INSTALL_FAILED" and bool(_NO_WHEELS.search(failure.message))


def redacted(text: str) -> str:
    """Return `text` without what stands before "@" in URLs."""
    return _CREDENTIALS.sub("//****@", text)


def _meaning(code: int, text: str) -> tuple[str, str]:
    if code < 0:
        return "INSTALL_FAILED", "the installer was killed, perhaps for want of memory; try again"
    if option := _BAD_OPTION.search(text):
        return "SCRIPT_METADATA", f"correct {option[2]} in [tool.uv]; {option[1]!r} is not valid"
    if _DENIED.search(text):
        return "INSTALL_FAILED", "ask the operator to check the credentials of the package index"
    if "No space left on device" in text:
        return "INSTALL_FAILED", "ask the operator to make room in the data directory"
    if "Hash mismatch" in text:
        return "INSTALL_FAILED", "correct the hashes, or leave them out"
    if "No solution found" in text:
        return _unsolvable(text)
    if _UNREACHABLE.search(text):
        return "INDEX_UNREACHABLE", "try again when the package index answers"
    return "INSTALL_FAILED", "see the installer's message; another version may install"


def _unsolvable(text: str) -> tuple[str, str]:
    if unknown := _UNKNOWN.search(text):
        return "PACKAGE_NOT_FOUND", f"check the spelling of {unknown[1]}, or remove it"
    if python := _PYTHON.search(text):
        return (
            "REQUIREMENTS_CONFLICT",
            f'ask for a newer Python: requires-python = "{python[2]}", or for an older version of '
            "the package",
        )
    if _NO_WHEELS.search(text):
        return (
            "INSTALL_FAILED",
            "require a version that has a wheel for this Python and platform; source distributions "
            "are not built here (MAYFLY_BUILD_SDISTS)",
        )
    missing = _NO_VERSION.search(text)
    if missing and "depends on" not in text:
        return "PACKAGE_NOT_FOUND", f"require a version of {missing[1] or missing[2]} that exists"
    return "REQUIREMENTS_CONFLICT", "relax the versions so that they fit together"
