"""Addresses as settings write them."""

from __future__ import annotations


def host_and_port(address: str) -> tuple[str, int]:
    """Split "host:port" or "[ipv6]:port". Raises `ValueError` that says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{address!r} is not host:port, as in 127.0.0.1:8080")
    if not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"the port {port!r} is not a number from 0 to 65535")
    return host.strip("[]"), int(port)
