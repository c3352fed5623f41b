"""Images for tests: the Python test image with a file or two on top, pushed under a tag."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import tarfile
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[3] / "runtimes" / "python"


def image(base: str, registry: str, folder: Path, files: dict[str, str], *command: str) -> str:
    """Put an image together and push it; return its reference by digest.

    files: contents by path from the root. command: what the container runs.
    """
    layer = folder / f"{secrets.token_hex(4)}.tar"
    with tarfile.open(layer, "w") as archive:
        for path, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    tag = f"{registry}/mayfly-test/functions:{secrets.token_hex(6)}"
    _crane("append", "--insecure", "-b", base, "-f", str(layer), "-t", tag)
    program = ",".join(command)
    _crane("mutate", "--insecure", tag, "--entrypoint", program, "--user", "65532", "-t", tag)
    return f"{tag.rpartition(':')[0]}@{_crane('digest', '--insecure', tag)}"


def script_image(base: str, registry: str, folder: Path, source: str) -> str:
    """An image that runs `source` with Python, as backends make it."""
    files = {f"mayfly/{each.name}": each.read_text() for each in RUNTIME.glob("*.py")}
    files["srv/script.py"] = source
    command = ("python3", "-I", "-S", "/mayfly/script.py", "/srv/script.py")
    return image(base, registry, folder, files, *command)


def handler_image(base: str, registry: str, folder: Path, source: str) -> str:
    """An image with Mayfly's own server in front of a handler."""
    files = {f"mayfly/{each.name}": each.read_text() for each in RUNTIME.glob("*.py")}
    files["function/handler.py"] = source
    return image(base, registry, folder, files, "python3", "/mayfly/container.py")


def _crane(*arguments: str) -> str:
    # The registry of the tests is on this machine, whatever proxy there is.
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        ["crane", *arguments], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    if done.returncode:
        raise AssertionError(f"crane {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
