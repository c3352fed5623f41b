"""Addresses as settings write them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

# sun_path of sockaddr_un, its closing zero byte excluded (unix(7)).
MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class Address:
    """A unix socket (`path`) or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_name(self) -> bool:
        """Whether the host has to be looked up."""
        if self.path:
            return False
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{self.port}"


def parse(text: str) -> Address:
    """Return the address of "unix:/path", "tcp:host:port" or "host:port".

    Raises `ValueError` with what is wrong.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{text!r}: a unix socket needs an absolute path")
        if len(path.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"{text!r}: longer than the {MAX_SOCKET_PATH} bytes a socket may have")
        return Address(path=path)
    return _tcp(text, "unix:/path or host:port")


def host_and_port(text: str) -> tuple[str, int]:
    """Return the two of "host:port" or "[ipv6]:port". Raises `ValueError` with what is wrong."""
    address = _tcp(text, "host:port, as in 127.0.0.1:8080")
    return address.host, address.port


def _tcp(text: str, wanted: str) -> Address:
    host, separator, port = text.removeprefix("tcp:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r}: must be {wanted}")
    return Address(host=host, port=int(port))
