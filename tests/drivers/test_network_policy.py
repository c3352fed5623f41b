"""The rules for addresses, and the filter that makes the instances ask."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.deployer.drivers.process import network_policy as policy
from services.deployer.drivers.process.sandbox import seccomp

ALLOW, NOTIFY, ERRNO, KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000


def v4(ip: str, port: int) -> bytes:
    return struct.pack("=H", 2) + struct.pack("!H", port) + socket.inet_aton(ip) + bytes(8)


def v6(ip: str, port: int) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, ip)
    return struct.pack("=H", 10) + struct.pack("!HI", port, 0) + packed + bytes(4)


RULES = policy.Rules(
    own={8000: 41000},
    public=frozenset({8080}),
    resolvers=frozenset({ipaddress.ip_address("127.0.0.53")}),
)


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (v4("127.0.0.1", 5432), "refuse"),
        (v4("127.9.9.9", 5432), "refuse"),
        (v4("0.0.0.0", 5432), "refuse"),
        (v4("10.0.0.7", 5432), "refuse"),  # an address of this machine
        (v4("10.0.0.8", 5432), "allow"),
        (v6("::1", 5432), "refuse"),
        (v6("::", 5432), "refuse"),
        (v6("::ffff:127.0.0.1", 5432), "refuse"),
        (v6("2001:db8::1", 443), "allow"),
        (v4("127.0.0.1", 8000), "own"),
        (v6("::1", 8000), "own"),
        (v4("127.0.0.1", 41000), "refuse"),
        (v4("127.0.0.1", 8080), "allow"),
        (v4("127.0.0.53", 53), "allow"),
        (v4("127.0.0.53", 54), "refuse"),
        (v4("127.0.0.1", 53), "refuse"),
    ],
)
def test_connect(raw: bytes, verdict: str) -> None:
    address = policy.parse(raw)
    assert address is not None
    here = ipaddress.ip_address("10.0.0.7")
    assert policy.judge_connect(address, RULES, lambda ip: ip == here) == verdict


@given(st.binary(max_size=128))
def test_any_bytes_can_be_parsed(raw: bytes) -> None:
    policy.parse(raw)


def test_unix_addresses() -> None:
    assert policy.parse(b"\x01\x00/tmp/x\x00junk") == policy.Address(1, path=b"/tmp/x")
    abstract = policy.parse(b"\x01\x00\x00name")
    assert abstract is not None
    assert abstract.abstract
    assert policy.parse(b"\x02\x00\x00") is None


def test_local_addresses_are_found_by_binding() -> None:
    assert policy.is_local(ipaddress.ip_address("127.0.0.1"))
    assert not policy.is_local(ipaddress.ip_address("192.0.2.77"))
    assert not policy.is_local(ipaddress.ip_address("224.0.0.1"))


def test_rewritten_addresses() -> None:
    assert policy.with_loopback(v4("0.0.0.0", 1), 7) == v4("127.0.0.1", 7)
    assert policy.with_loopback(v6("::", 1), 7) == v6("::1", 7)
    assert policy.mapped_loopback(7) == v6("::ffff:127.0.0.1", 7)


def run_filter(machine: str, arch: int, number: int, args: tuple[int, ...]) -> int:
    """Classic BPF as the kernel runs it, for the instructions that are used."""
    data = struct.pack(
        "<iIQ6Q",
        number if number < 1 << 31 else number - (1 << 32),
        arch,
        0,
        *(*args, *[0] * (6 - len(args))),
    )
    program = list(struct.iter_unpack("HBBI", seccomp.build_filter(machine)))
    accumulator, at = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            accumulator &= k
        else:
            test = {
                0x15: accumulator == k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[code]
            at += yes if test else no


@pytest.mark.parametrize(
    ("number", "args", "action"),
    [
        (0, (), ALLOW),  # read
        (9, (), ALLOW),  # mmap
        (500, (), ALLOW),
        (49, (3,), NOTIFY),  # bind
        (50, (3,), NOTIFY),
        (42, (3,), NOTIFY),
        (44, (3, 1, 1, 0, 0, 0), ALLOW),  # send
        (44, (3, 1, 1, 0, 0x10, 16), NOTIFY),
        (44, (3, 1, 1, 0, 1 << 40, 16), NOTIFY),
        (44, (3, 1, 1, 0x20000000, 0x10, 16), ERRNO | 95),
        (46, (3, 1, 0x20000000), ERRNO | 95),
        (46, (3, 1, 0), ALLOW),
        (48, (3, 1), ALLOW),
        (48, (3, 2), NOTIFY),
        (48, (3, 0), NOTIFY),
        (56, (0x11,), ALLOW),
        (56, (0x10000011,), ERRNO | 1),
        (56, (0x3D0F00,), ALLOW),  # a thread of glibc
        (435, (), ERRNO | 38),
        (425, (), ERRNO | 38),
        (101, (), ERRNO | 1),
        (165, (), ERRNO | 1),
        (442, (), ERRNO | 1),
        (41, (1, 1), ALLOW),
        (41, (1, 0x80801), ALLOW),
        (41, (1, 2), ERRNO | 1),
        (41, (2, 2), ALLOW),
        (41, (10, 1), ALLOW),
        (41, (16, 3, 0), ALLOW),
        (41, (16, 3, 9), ERRNO | 1),
        (41, (17, 3), ERRNO | 97),
        (0x40000000 + 49, (), KILL),  # x32
    ],
)
def test_filter(number: int, args: tuple[int, ...], action: int) -> None:
    assert run_filter("x86_64", 0xC000003E, number, args) == action


def test_filter_of_another_architecture() -> None:
    assert run_filter("x86_64", 0x40000003, 3, ()) == KILL  # 32-bit calls
    assert run_filter("aarch64", 0xC00000B7, 200, ()) == NOTIFY
    assert run_filter("aarch64", 0xC00000B7, 63, ()) == ALLOW
    with pytest.raises(KeyError):
        seccomp.build_filter("m68k")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_call_named_is_found(machine: str) -> None:
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    column = 0 if machine == "x86_64" else 1
    for name, numbers in seccomp._NUMBERS.items():  # pyright: ignore[reportPrivateUsage]
        if numbers[column] >= 0 and name not in ("sendto", "sendmsg", "sendmmsg", "clone"):
            assert run_filter(machine, arch, numbers[column], (17,)) != ALLOW, name
