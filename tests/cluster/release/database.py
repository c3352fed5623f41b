"""A PostgreSQL on this machine that pods reach, with a database for each release."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 30


class NoAddress(Exception):
    """Pods reach no address of this machine that is known here."""


def host_address() -> str:
    """Return an address of this machine that pods reach: MAYFLY_TEST_HOST_ADDRESS, or the node's.

    Raises `NoAddress` where the cluster is elsewhere.
    """
    given = os.environ.get("MAYFLY_TEST_HOST_ADDRESS", "")
    candidates = (
        [given] if given else [_host("MAYFLY_TEST_REGISTRY"), _host("MAYFLY_TEST_S3_ENDPOINT")]
    )
    for address in candidates:
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            return address
    raise NoAddress(
        "no address of this machine that pods reach is known; set MAYFLY_TEST_HOST_ADDRESS, or "
        "MAYFLY_TEST_DATABASE_URL to a PostgreSQL that they reach"
    )


@contextmanager
def database() -> Iterator[str]:
    """Run a PostgreSQL and yield the URL of its database; MAYFLY_TEST_DATABASE_URL instead, if set.

    Raises `NoAddress`.
    """
    if url := os.environ.get("MAYFLY_TEST_DATABASE_URL"):
        yield url
        return
    address = host_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = int(probe.getsockname()[1])
    password = secrets.token_hex(8)
    # Its user has to get there, unlike to pytest's own directories.
    directory = Path(tempfile.mkdtemp(prefix="mayfly-database-"))
    directory.chmod(0o755)
    log = directory / "log"
    settings = {
        "MAYFLY_DATABASE_DIR": str(directory / "postgres"),
        "MAYFLY_DATABASE_LISTEN": f"{address}:{port}",
        "MAYFLY_DATABASE_PASSWORD": password,
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "services.standalone.database"],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield f"postgresql://mayfly:{password}@{address}:{port}/mayfly"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            shutil.rmtree(directory)


def _host(variable: str) -> str:
    value = os.environ[variable]
    return urlsplit(value if "//" in value else f"//{value}").hostname or ""
