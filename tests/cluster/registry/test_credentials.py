"""Credentials, against a real registry that wants them (the program `docker-registry`)."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from libs.registry import Denied, Repository, Transport, digest_of
from libs.registry.credentials import Login, login_of

# bcrypt of "secret".
USERS = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "%s"}
auth: {htpasswd: {realm: test, path: %s}}
"""


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a registry that only "me" may use."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "users").write_text(USERS)
    settings = folder / "config.yml"
    settings.write_text(CONFIG % (folder / "data", address, folder / "users"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
    return process, address


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The address of such a registry."""
    process, address = start(tmp_path)
    host, _, port = address.partition(":")
    try:
        for _ in range(500):
            try:
                socket.create_connection((host, int(port)), 5).close()
                break
            except ConnectionRefusedError:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.02)
        yield address
    finally:
        process.kill()
        process.wait()


def write_login(file: Path, host: str, password: str) -> None:
    """Write a config.json."""
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    file.write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@asynccontextmanager
async def repository(host: str, auth: Path | None) -> AsyncIterator[Repository]:
    """A repository there."""
    transport = Transport(host, insecure=True, auth=auth, patience=2)
    try:
        yield Repository(transport, f"x/{secrets.token_hex(4)}")
    finally:
        await transport.close()


async def test_a_push_takes_the_credentials_of_that_moment(guarded: str, tmp_path: Path) -> None:
    file, blob = tmp_path / "config.json", b"content"
    write_login(file, guarded, "wrong")
    async with repository(guarded, file) as one:
        with pytest.raises(Denied):
            await one.upload(digest_of(blob), blob)
        # A Secret that has been corrected counts without a restart.
        write_login(file, guarded, "secret")
        await one.upload(digest_of(blob), blob)
        assert await one.blob(digest_of(blob)) == blob


async def test_without_credentials_it_is_denied_by_name(guarded: str, tmp_path: Path) -> None:
    async with repository(guarded, None) as one:
        with pytest.raises(Denied, match="wants credentials"):
            await one.tags()
    async with repository(guarded, tmp_path / "missing") as one:
        with pytest.raises(Denied, match="cannot be read"):
            await one.tags()


async def test_blobs_are_copied_from_one_registry_to_another(guarded: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = tmp_path / "config.json"
    write_login(file, guarded, "secret")
    blob = secrets.token_bytes(3 << 20)
    process, address = start(tmp_path / "other")
    login = tmp_path / "other.json"
    write_login(login, address, "secret")
    try:
        async with repository(address, login) as source, repository(guarded, file) as target:
            await source.upload(digest_of(blob), blob)
            await target.upload_from(digest_of(blob), len(blob), source)
            async with target.open_blob(digest_of(blob)) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == blob
    finally:
        process.kill()
        process.wait()


def test_a_login_is_found_under_the_names_that_clients_write() -> None:
    hub = {"auths": {"https://index.docker.io/v1/": {"username": "a", "password": "b"}}}
    assert login_of(hub, "registry-1.docker.io") == Login("a", "b")
    assert login_of({"auths": {"https://r:5000": {"identitytoken": "t"}}}, "r:5000") == Login(
        token="t"
    )
    assert login_of({"auths": {"r:5000": {"auth": "YTpiOmM="}}}, "r:5000") == Login("a", "b:c")
    assert login_of({"auths": {"r:5000": {}}}, "other") is None
    assert login_of({}, "other") is None
    with pytest.raises(Denied, match="base64"):
        login_of({"auths": {"r": {"auth": "%%%"}}}, "r")
