"""The head of an HTTP/1.1 message (RFC 9112), no more of it than the gateway needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.gateway.errors import Problem, body, encode, phrase

MAX_HEAD_BYTES = 96 * 1024  # Envoy takes at most 60 KiB from a client and adds a little
END_OF_HEAD = b"\r\n\r\n"


class MalformedHead(Exception):
    """The bytes are no request's head."""


@dataclass(frozen=True)
class Head:
    """A request's first lines. Header names are in lower case, as Envoy sends them."""

    method: str
    path: str
    lines: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """Return the first value of a header; empty when there is none."""
        return next((value for key, value in self.lines if key == name), "")


def parse_head(raw: bytes) -> Head:
    """Return the head that `raw`, up to and with its empty line, is. Raises `MalformedHead`."""
    first, *rest = raw.removesuffix(END_OF_HEAD).decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedHead(first)
    lines: list[tuple[str, str]] = []
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise MalformedHead(line)
        lines.append((name.lower(), value.strip(" \t")))
    return Head(parts[0], parts[1], tuple(lines))


SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and may be sent again (RFC 9110, 9.2)."""


def is_whole(head: Head) -> bool:
    """Whether nothing follows a request's head: no body, and no other protocol."""
    return not any(
        head.get(name) for name in ("transfer-encoding", "upgrade", "expect")
    ) and head.get("content-length") in ("", "0")


def with_headers(head: Head, changes: Mapping[str, str]) -> bytes:
    """Return the head's bytes with headers set to a value, or removed where it is empty."""
    lines = [(name, value) for name, value in head.lines if name not in changes]
    lines += [(name, value) for name, value in changes.items() if value]
    text = f"{head.method} {head.path} HTTP/1.1\r\n"
    text += "".join(f"{name}: {value}\r\n" for name, value in lines)
    return text.encode("latin-1") + b"\r\n"


def response(code: int, content_type: str, content: bytes, *, method: str = "GET") -> bytes:
    """Return a whole response, after which the connection is closed."""
    head = (
        f"HTTP/1.1 {code} {phrase(code)}\r\n"
        f"content-type: {content_type}\r\n"
        f"content-length: {len(content)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if method == "HEAD" else content)


def refusal(problem: Problem, *, method: str = "GET") -> bytes:
    """Return the response that says why a request is refused."""
    return response(problem.http, "application/json", encode(body(problem)), method=method)


def header_names(start: bytes) -> frozenset[str]:
    """Return the headers of a response that begins with `start`; none while it is incomplete."""
    end = start.find(END_OF_HEAD)
    lines = start[:end].decode("latin-1").split("\r\n")[1:] if end > 0 else []
    return frozenset(line.partition(":")[0].strip().lower() for line in lines)


def status_code(start: bytes) -> int:
    """Return the status of a response that begins with `start`; 0 when it is none."""
    line = start[:13].split(b" ")
    if len(line) < 2 or not line[0].startswith(b"HTTP/") or not line[1][:3].isdigit():
        return 0
    return int(line[1][:3])
