"""Unpacks a bundle in a container, then becomes what runs it.

It is sent to the container; nothing imports it.

    MAYFLY_BUNDLE=FILE python unpack.py PROGRAM ARGUMENT...
"""

from __future__ import annotations

import os
import sys
import tarfile
from typing import NoReturn


def main(program: list[str]) -> NoReturn:
    """Put the function's files where it works, which is the current directory."""
    with tarfile.open(os.environ.pop("MAYFLY_BUNDLE")) as archive:
        archive.extractall(".", filter="data")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
