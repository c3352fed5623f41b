"""Blocks of PEP 723."""

from __future__ import annotations

import pytest

from services.builder.backends.environment.pep723 import read_optional, read_script
from services.builder.failures import BuildFailed

# The example of the PEP.
EXAMPLE = """# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "requests<3",
#   "rich",
# ]
# ///

import requests
"""


def failure(text: str) -> BuildFailed:
    """Return why a script is refused."""
    with pytest.raises(BuildFailed) as raised:
        read_script(text)
    assert raised.value.fix
    return raised.value


def test_the_example_of_the_pep() -> None:
    metadata = read_script(EXAMPLE)
    assert metadata.requires_python == ">=3.11"
    assert metadata.dependencies == ("requests<3", "rich")
    assert metadata.line == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_block_after_other_lines_and_with_blank_comments(newline: str) -> None:
    text = (
        "#!/usr/bin/env python\n# a comment\n\n# /// script\n#\n# dependencies = []\n# ///\nx = 1\n"
    )
    metadata = read_script(text.replace("\n", newline))
    assert (metadata.line, metadata.dependencies) == (4, ())


def test_a_closing_line_inside_the_block_ends_at_the_last_one() -> None:
    """The PEP: the last `# ///` of an unbroken run of comments closes the block."""
    text = '# /// script\n# [tool.x]\n# a = """\n# ///\n# """\n# ///\n'
    assert read_script(text).tool == {"x": {"a": "///\n"}}


def test_blocks_of_other_types_are_left_alone() -> None:
    text = "# /// pyproject\n# what = [\n# ///\n\n" + EXAMPLE
    assert read_script(text).dependencies == ("requests<3", "rich")


def test_two_blocks_are_named_by_their_lines() -> None:
    error = failure(EXAMPLE + EXAMPLE)
    assert (error.reason, error.line) == ("SCRIPT_BLOCKS", 10)
    assert "lines 1 and 10" in error.message


def test_no_block() -> None:
    assert failure("print(1)\n").reason == "SCRIPT_BLOCKS"
    assert read_optional("print(1)\n") is None


@pytest.mark.parametrize(
    "text", ["# /// script\n# dependencies = []\nprint(1)\n", "# /// script\n#x = 1\n# ///\n"]
)
def test_a_block_that_is_not_closed(text: str) -> None:
    error = failure("import os\n" + text)
    assert (error.reason, error.line) == ("SCRIPT_BLOCKS", 2)
    assert "never closed" in error.message


def test_bad_toml_is_placed_in_the_file() -> None:
    error = failure('import os\n# /// script\n# dependencies = []\n# name = = "x"\n# ///\n')
    assert (error.reason, error.line, error.column) == ("SCRIPT_METADATA", 4, 10)
    assert error.source_line == '# name = = "x"'


def test_toml_that_ends_too_early_is_placed_in_the_block() -> None:
    error = failure("# /// script\n# dependencies = [\n#   'six'\n# ///\n")
    assert error.reason == "SCRIPT_METADATA"
    assert 2 <= error.line <= 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('dependencies = "httpx"', "dependencies"),
        ("dependencies = [1]", "dependencies"),
        ("requires-python = 3.11", "requires-python"),
        ('requires-python = "eleven"', "eleven"),
        ("tool = 1", "tool"),
    ],
)
def test_wrong_types(line: str, said: str) -> None:
    error = failure(f"# /// script\n# {line}\n# ///\n")
    assert error.reason == "SCRIPT_METADATA"
    assert said in error.message


@pytest.mark.parametrize(
    ("key", "meant"), [("dependancies", "dependencies"), ("requires_python", "requires-python")]
)
def test_a_misspelt_key_is_not_left_out_of_account(key: str, meant: str) -> None:
    error = failure(f'# /// script\n# {key} = "x"\n# ///\n')
    assert error.reason == "SCRIPT_METADATA"
    assert meant in error.fix


def test_another_key_is_noted() -> None:
    assert "license" in read_script('# /// script\n# license = "MIT"\n# ///\n').notes[0]
