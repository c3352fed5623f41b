"""What may be required."""

from __future__ import annotations

import pytest

from services.builder.backends.environment.pep723 import read_script
from services.builder.backends.environment.requirements import (
    Requested,
    from_metadata,
    from_pyproject,
    from_requirements_txt,
    parse,
    with_hashes,
)
from services.builder.failures import BuildFailed


def of_block(*lines: str) -> Requested:
    """Return what a block of these lines asks for."""
    return from_metadata(
        read_script("\n".join(["# /// script", *(f"# {x}" for x in lines), "# ///"]) + "\n")
    )


def reason(call: object, *arguments: str) -> tuple[str, str]:
    """Return the reason and message of a refusal."""
    assert callable(call)
    with pytest.raises(BuildFailed) as raised:
        call(*arguments)
    assert raised.value.fix
    return raised.value.reason, raised.value.message


def test_requirements_are_normalised_and_unique() -> None:
    assert parse(["httpx >= 0.27", "httpx>=0.27", "rich[jupyter]; python_version>'3'"]) == (
        "httpx>=0.27",
        'rich[jupyter]; python_version > "3"',
    )


@pytest.mark.parametrize(
    "text",
    [
        "x @ https://localhost/x-1-py3-none-any.whl",
        "x @ git+https://localhost/x.git",
        "x @ file:///etc/passwd",
        "https://localhost/x.whl",
        "./local",
        "../local",
        "/absolute",
        "x.tar.gz",
        "not a requirement!!",
        "-r other.txt",
        "",
    ],
)
def test_addresses_and_paths_are_refused(text: str) -> None:
    said = reason(parse, [text])  # pyright: ignore[reportArgumentType]
    assert said[0] == "REQUIREMENT_REFUSED"
    assert repr(text) in said[1]


@pytest.mark.parametrize(
    "lines",
    [
        ["[[tool.uv.index]]", 'url = "http://localhost/simple"'],
        ["[tool.uv]", 'index-url = "http://localhost/simple"'],
        ["[tool.uv]", 'extra-index-url = ["http://localhost/simple"]'],
        ["[tool.uv]", 'find-links = ["/tmp"]'],
        ["[tool.uv.sources]", 'six = { path = "/etc" }'],
        ["[tool.uv.pip]", 'index-url = "http://localhost/simple"'],
    ],
)
def test_indexes_of_its_own_are_refused(lines: list[str]) -> None:
    assert reason(of_block, 'dependencies = ["six"]', *lines)[0] == "INDEX_REFUSED"


def test_options_that_name_no_address_are_passed_on() -> None:
    requested = of_block(
        'dependencies = ["six"]',
        "[tool.uv]",
        'exclude-newer = "2025-01-01"',
        'constraint-dependencies = ["six<2"]',
        "dev-dependencies = []",
    )
    assert requested.options == ("--exclude-newer=2025-01-01",)
    assert requested.constraints == ("six<2",)
    assert requested.notes == ("tool.uv.dev-dependencies is left out of account",)


def test_constraints_are_refused_like_requirements() -> None:
    line = 'constraint-dependencies = ["six @ file:///etc/passwd"]'
    assert reason(of_block, "[tool.uv]", line)[0] == "REQUIREMENT_REFUSED"


def test_a_requirements_file() -> None:
    text = """# comment
httpx>=0.27  # trailing
six==1.17.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb

rich ; python_version > "3"
"""
    requested = from_requirements_txt(text)
    assert requested.requirements == ("httpx>=0.27", "six==1.17.0", 'rich; python_version > "3"')
    assert with_hashes(["httpx==1", "six==1.17.0"], requested.hashes) == [
        "httpx==1",
        "six==1.17.0 --hash=sha256:aa --hash=sha256:bb",
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--index-url http://localhost", "INDEX_REFUSED"),
        ("-i http://localhost", "INDEX_REFUSED"),
        ("--find-links=/tmp", "INDEX_REFUSED"),
        ("-e .", "REQUIREMENT_REFUSED"),
        ("-r more.txt", "REQUIREMENT_REFUSED"),
        ("--pre", "REQUIREMENT_REFUSED"),
        ("./here", "REQUIREMENT_REFUSED"),
    ],
)
def test_options_in_a_requirements_file_are_refused(line: str, why: str) -> None:
    assert reason(from_requirements_txt, f"six\n{line}\n")[0] == why


def test_a_pyproject() -> None:
    text = '[project]\nname = "x"\nrequires-python = ">=3.11"\ndependencies = ["six"]\n'
    requested = from_pyproject(text)
    assert (requested.requirements, requested.requires_python) == (("six",), ">=3.11")
    own_index = text + '[[tool.uv.index]]\nurl = "x"\n'
    assert reason(from_pyproject, own_index)[0] == "INDEX_REFUSED"
    assert reason(from_pyproject, "[project]\ndependencies = 1\n")[0] == "SCRIPT_METADATA"
    assert reason(from_pyproject, "[project\n")[0] == "SCRIPT_METADATA"
