"""A file of figures: a section for each group, replaced when that is taken again."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figures import Figure, markdown_table

_HEAD = "# Figures\n\nHow each is measured and what limits it: README.md beside this file.\n"


def keep(path: Path, title: str, where: str, figures: Sequence[Figure]) -> None:
    """Write the section `title` with the day and the commit; other sections stay as they are.

    `where` is one line about the machine.
    """
    text = path.read_text() if path.exists() else _HEAD
    path.write_text(with_section(text, title, _section(title, where, figures)))


def with_section(text: str, title: str, section: str) -> str:
    """Return the text with the section in the place of an older one, else at the end."""
    sections = re.split(r"(?m)^(?=## )", text.rstrip("\n") + "\n")
    old = [n for n, each in enumerate(sections) if each.startswith(f"## {title}\n")]
    if old:
        sections[old[0]] = section
    else:
        sections.append(section)
    return "\n".join(each.rstrip("\n") + "\n" for each in sections)


def _section(title: str, where: str, figures: Sequence[Figure]) -> str:
    day = time.strftime("%Y-%m-%d")
    table = markdown_table(figures)
    return f"## {title}\n\n{day}, commit {_revision()}; {where}.\n\n{table}\n"


def _revision() -> str:
    """Return the commit that is measured, or "unknown" outside a clone."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
