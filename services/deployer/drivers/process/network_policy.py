"""Whom a function may talk to: pure rules over socket addresses."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

AF_UNIX, AF_INET, AF_INET6, AF_UNSPEC = 1, 2, 10, 0

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Address:
    """A parsed struct sockaddr. For AF_UNIX, `path` (empty: unnamed) and `abstract`."""

    family: int
    ip: IpAddress | None = None
    port: int = 0
    path: bytes = b""
    abstract: bool = False


def parse(raw: bytes) -> Address | None:
    """None where it is too short to say what it is."""
    if len(raw) < 2:
        return None
    (family,) = struct.unpack_from("=H", raw)
    if family == AF_INET and len(raw) >= 8:
        (port,) = struct.unpack_from("!H", raw, 2)
        return Address(family, ipaddress.IPv4Address(raw[4:8]), port)
    if family == AF_INET6 and len(raw) >= 24:
        (port,) = struct.unpack_from("!H", raw, 2)
        ip = ipaddress.IPv6Address(raw[8:24])
        return Address(family, ip.ipv4_mapped or ip, port)
    if family == AF_UNIX:
        name = raw[2:]
        if name[:1] == b"\0":
            return Address(family, path=name, abstract=True)
        return Address(family, path=name.split(b"\0", 1)[0])
    if family in (AF_INET, AF_INET6):
        return None
    return Address(family)


def with_loopback(raw: bytes, port: int) -> bytes:
    """`raw`, an AF_INET or AF_INET6 address, with loopback and `port` in their places."""
    (family,) = struct.unpack_from("=H", raw)
    if family == AF_INET:
        return struct.pack("=H", AF_INET) + struct.pack("!H", port) + b"\x7f\0\0\1" + bytes(8)
    return struct.pack("=H", AF_INET6) + struct.pack("!HI", port, 0) + bytes(15) + b"\1" + bytes(4)


def mapped_loopback(port: int) -> bytes:
    """IPv4 loopback as an AF_INET6 address, for IPv6 sockets that reach IPv4 listeners."""
    ip = bytes(10) + b"\xff\xff\x7f\0\0\1"
    return struct.pack("=H", AF_INET6) + struct.pack("!HI", port, 0) + ip + bytes(4)


Verdict = Literal["allow", "refuse", "own"]


@dataclass(frozen=True)
class Rules:
    """What one instance may reach on this machine.

    own: the ports it asked for, to the ones it was given. public: the gateway's ports, open to
    everybody. resolvers: name servers on loopback, for port 53 only.
    """

    own: Mapping[int, int]
    public: frozenset[int]
    resolvers: frozenset[IpAddress]


def judge_connect(address: Address, rules: Rules, is_local: Callable[[IpAddress], bool]) -> Verdict:
    """`own`: connect to `rules.own[port]` on loopback instead of the address asked for."""
    ip = address.ip
    if ip is None:
        return "refuse"
    if not (ip.is_loopback or ip.is_unspecified or is_local(ip)):
        return "allow"
    if address.port in rules.own:
        return "own"
    if address.port in rules.public:
        return "allow"
    if address.port == 53 and ip in rules.resolvers:
        return "allow"
    return "refuse"


def is_local(ip: IpAddress) -> bool:
    """Whether packets to `ip` stay on this machine: only then can a socket be bound to it."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return ip.is_link_local and ip.version == 6
        return not ip.is_multicast


def loopback_resolvers(resolv_conf: str) -> frozenset[IpAddress]:
    found: set[IpAddress] = set()
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip = ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.add(ip)
    return frozenset(found)
