"""A package index on loopback (PEP 503, PEP 658) that can hold, fail, and count."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def wheel(name: str, version: str, requires: tuple[str, ...] = (), filler: int = 0) -> bytes:
    """Return a wheel of one module whose VERSION is its version."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n" + "#" * filler,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines: list[str] = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return whole.getvalue()


def sdist(name: str, version: str, code: str) -> bytes:
    """Return a source distribution with a build backend of its own."""
    built = base64.b64encode(wheel(name, version)).decode()
    file = f"{name}-{version}-py3-none-any.whl"
    backend = f"""{code}
import base64, os
def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open(os.path.join(directory, {file!r}), "wb") as file:
        file.write(base64.b64decode({built!r}))
    return {file!r}
"""
    project = "[build-system]\nrequires = []\nbuild-backend = 'own'\nbackend-path = ['.']\n"
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for path, text in (("own.py", backend), ("pyproject.toml", project), ("PKG-INFO", info)):
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return whole.getvalue()


def metadata(whole: bytes) -> bytes:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        name = next(each for each in archive.namelist() if each.endswith("/METADATA"))
        return archive.read(name)


class Index:
    """What it offers, and how it behaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        # Requests of files wait for this one.
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        self.failing = False
        self.url = ""

    def add(self, name: str, version: str = "1.0", *, requires: tuple[str, ...] = ()) -> None:
        """Offer a package."""
        self.files[f"{name}-{version}-py3-none-any.whl"] = wheel(name, version, requires)

    def add_sdist(self, name: str, code: str, version: str = "1.0") -> None:
        """Offer a package that has no wheel, and whose build begins with running `code`."""
        self.files[f"{name}-{version}.tar.gz"] = sdist(name, version, code)

    def hold(self) -> None:
        """Answer no more requests of files until `open` is set."""
        self.held.clear()
        self.open.clear()

    def answer(self, path: str) -> tuple[int, bytes]:
        """Return status and body."""
        self.requests.append(path)
        if self.failing:
            return 503, b""
        parts = path.strip("/").split("/")
        if parts[0] == "files" and path.endswith(".metadata"):
            return 200, metadata(self.files[parts[1].removesuffix(".metadata")])
        if parts[0] == "files":
            self.held.set()
            self.open.wait(60)
            return (200, self.files[parts[1]]) if parts[1] in self.files else (404, b"")
        wanted = parts[-1].replace("-", "_")
        names = [name for name in self.files if name.partition("-")[0] == wanted]
        if not names:
            return 404, b""
        known = 'data-core-metadata="true"'
        links = "".join(
            f'<a href="/files/{name}" {known if name.endswith(".whl") else ""}>{name}</a>'
            for name in names
        )
        return 200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


@contextmanager
def serving() -> Iterator[Index]:
    """Serve an index on a port of its own."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = index.answer(self.path)
            try:
                self.send_response(status)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # the installer was killed

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    try:
        yield index
    finally:
        index.open.set()
        server.shutdown()
        server.server_close()
        thread.join()
