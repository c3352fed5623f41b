"""Credentials from a docker config.json, read anew for each use: Secrets are rotated."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from libs.registry.errors import Denied

_HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Login:
    """A user's name and password; `token` is an identity token instead (OAuth2 refresh token)."""

    user: str = ""
    password: str = ""
    token: str = ""


def read(path: Path | None, host: str) -> Login | None:
    """Return the login for a registry, None where the file has none. Raises `Denied`."""
    if path is None:
        return None
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Denied(f"the registry's credentials cannot be read from {path}: {error}") from error
    return login_of(content, host)


def login_of(content: Any, host: str) -> Login | None:
    """Return the login for `host` in the content of a config.json."""
    if not isinstance(content, dict):
        return None
    found = cast("dict[str, Any]", content).get("auths")
    auths = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    names = [
        host,
        f"https://{host}",
        f"http://{host}",
        f"https://{host}/v1/",
        f"https://{host}/v2/",
    ]
    if host in ("docker.io", "registry-1.docker.io"):
        names += [_HUB_KEY, "docker.io", "index.docker.io"]
    for name in names:
        entry: Any = auths.get(name)
        if isinstance(entry, dict):
            return _login(cast("dict[str, Any]", entry), host)
    return None


def _login(entry: dict[str, Any], host: str) -> Login:
    if token := entry.get("identitytoken"):
        return Login(token=str(token))
    if "username" in entry and "password" in entry:
        return Login(str(entry["username"]), str(entry["password"]))
    try:
        user, _, password = (
            base64.b64decode(str(entry.get("auth", "")), validate=True).decode().partition(":")
        )
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Denied(f"the credentials for {host} are no base64 of user:password") from error
    return Login(user, password)
