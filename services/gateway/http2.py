"""The beginning of an HTTP/2 connection that carries one request (RFC 9113), and gRPC refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from services.gateway.errors import Problem
from services.gateway.http1 import Head, MalformedHead

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD = 9
DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0, 1, 3, 4, 9
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
# With one of these the answer to a request has begun; others are about the connection.
OF_A_RESPONSE = (DATA, HEADERS, RST_STREAM)


@dataclass(frozen=True)
class Frame:
    """One frame, where it begins and ends in the bytes it was found in."""

    type: int
    flags: int
    stream: int
    payload: bytes
    start: int
    end: int


def frames(data: bytes | bytearray, start: int = 0) -> Iterator[Frame]:
    """Yield the frames that are complete."""
    while len(data) - start >= FRAME_HEAD:
        length = int.from_bytes(data[start : start + 3], "big")
        end = start + FRAME_HEAD + length
        if len(data) < end:
            return
        stream = int.from_bytes(data[start + 5 : start + 9], "big") & 0x7FFFFFFF
        payload = bytes(data[start + FRAME_HEAD : end])
        yield Frame(data[start + 3], data[start + 4], stream, payload, start, end)
        start = end


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


@dataclass(frozen=True)
class Opening:
    """What a client sends up to and with its request's header block.

    `before` is the connection's preface and frames up to there, `stream` the request's.
    """

    head: Head
    before: bytes
    block: bytes
    stream: int
    ended: bool


def opening(data: bytes | bytearray) -> tuple[Opening, int] | None:
    """Return the opening and where it ends; None while it is not complete.

    Raises `MalformedHead`.
    """
    if not PREFACE.startswith(bytes(data[: len(PREFACE)])):
        raise MalformedHead("no HTTP/2 preface")
    first: Frame | None = None
    block = b""
    for found in frames(data, len(PREFACE)):
        if found.type == HEADERS and first is None:
            first = found
            block = _without_padding(found)
        elif found.type == CONTINUATION and first is not None:
            block += found.payload
        if first is not None and found.flags & END_HEADERS:
            made = Opening(
                _head(block),
                bytes(data[: first.start]),
                block,
                first.stream,
                bool(first.flags & END_STREAM),
            )
            return made, found.end
    return None


def forward(found: Opening, changes: Mapping[str, str]) -> bytes:
    """Return the opening with headers set to a value, or removed where it is empty.

    `host` is `:authority`. Unchanged headers go on as they came: later blocks refer to the
    compression state they leave.
    """
    lines = dict(found.head.lines)
    block = found.block
    if any(lines.get(name, "") != value for name, value in changes.items()):
        authority = changes.get("host", lines.get(":authority", ""))
        kept = [
            line for line in found.head.lines if line[0] not in (*changes, "host", ":authority")
        ]
        # Before the other fields: RFC 9113, 8.3.
        kept.insert(0, (":authority", authority))
        kept += [(name, value) for name, value in changes.items() if value and name != "host"]
        block = Encoder().encode(kept, huffman=False)
    flags = END_HEADERS | (END_STREAM if found.ended else 0)
    return found.before + frame(HEADERS, flags, found.stream, block)


def refusal(problem: Problem, stream: int, *, settled: bool) -> bytes:
    """Return the frames of a gRPC answer that is nothing but a status.

    `settled`: the client has settings and their acknowledgement from somebody else already.
    https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    """
    message = f"{problem.message}; {problem.fix}" if problem.fix else problem.message
    lines = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", str(problem.code)),
        ("grpc-message", quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~")),
    ]
    block = Encoder().encode(lines, huffman=False)
    opening_frames = b"" if settled else frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
    return opening_frames + frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def status_code(data: bytes) -> int:
    """Return the HTTP status of a response that begins with a HEADERS frame; 0 where none does."""
    found = next(frames(data), None)
    if found is None or found.type != HEADERS or not found.flags & END_HEADERS:
        return 0
    try:
        value = _head(_without_padding(found)).get(":status")
    except MalformedHead:
        return 0
    return int(value) if value.isdecimal() else 0


def _without_padding(found: Frame) -> bytes:
    payload = found.payload
    if found.flags & PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if found.flags & PRIORITY else payload


def _head(block: bytes) -> Head:
    try:
        decoded = cast("list[tuple[str, str]]", list(Decoder().decode(block)))
    except (HPACKError, UnicodeDecodeError) as error:
        raise MalformedHead(str(error)) from error
    lines = [(str(name), str(value)) for name, value in decoded]
    values = dict(lines)
    lines.append(("host", values.get(":authority", "")))
    return Head(values.get(":method", ""), values.get(":path", ""), tuple(lines))
