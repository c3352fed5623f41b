"""The two ways that a held request is spoken, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mayfly.v1.function_pb2 import Protocol as Speaks
from mayfly.v1.route_pb2 import Route

from services.gateway import http1, http2
from services.gateway.errors import Problem
from services.gateway.splice import Side


class Request(Protocol):
    """One request, its head read."""

    @property
    def head(self) -> http1.Head: ...

    def forward(self, changes: Mapping[str, str]) -> bytes:
        """Return the bytes for the function, with headers changed."""
        ...

    def refusal(self, problem: Problem) -> bytes:
        """Return the answer to the client, where the function has given none."""
        ...

    def upstream(self) -> Side:
        """Return the function's end."""
        ...

    def status_code(self, upstream: Side) -> int:
        """Return the status of the answer that has begun; 0 when it is unknown."""
        ...

    def speaks(self, route: Route) -> bool:
        """Whether the function can be spoken to in this way."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice."""
        ...


class Wire(Protocol):
    """How requests come."""

    def read(self, received: bytearray) -> Request | None:
        """Take a request's head off what was received; None while it is not complete.

        Raises `http1.MalformedHead`.
        """
        ...

    def malformed(self, problem: Problem) -> bytes:
        """Return the answer to what is no request."""
        ...


@dataclass(frozen=True)
class Http1Request:
    """A request of HTTP/1.1, WebSocket included."""

    head: http1.Head

    def forward(self, changes: Mapping[str, str]) -> bytes:
        return http1.with_headers(self.head, changes)

    def refusal(self, problem: Problem) -> bytes:
        return http1.refusal(problem, method=self.head.method)

    def upstream(self) -> Side:
        return Side()

    def status_code(self, upstream: Side) -> int:
        return http1.status_code(bytes(upstream.received[:16]))

    def speaks(self, route: Route) -> bool:
        return True  # servers of HTTP/2 without TLS take HTTP/1.1 as well, those of gRPC aside

    @property
    def repeatable(self) -> bool:
        return http1.is_whole(self.head) and self.head.method in http1.SAFE_METHODS


class Http1:
    """A connection's first bytes are a request's head."""

    def read(self, received: bytearray) -> Request | None:
        end = received.find(http1.END_OF_HEAD)
        if end < 0:
            return None
        end += len(http1.END_OF_HEAD)
        head = http1.parse_head(bytes(received[:end]))
        del received[:end]
        return Http1Request(head)

    def malformed(self, problem: Problem) -> bytes:
        return http1.refusal(problem)


class Http2Upstream(Side):
    """A function's end: what is about the connection goes on at once, an answer is kept.

    A client whose body is large waits for the window updates among the former.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settled = False

    def check_began(self) -> None:
        passed = 0
        for frame in http2.frames(self.received):
            if frame.type in http2.OF_A_RESPONSE:
                super().check_began()
                break
            passed = frame.end
        if passed:
            self.settled = True
            self.pass_on(passed)


@dataclass
class Http2Request:
    """A gRPC call, alone on its connection."""

    opening: http2.Opening
    _upstream: Http2Upstream | None = None

    @property
    def head(self) -> http1.Head:
        return self.opening.head

    def forward(self, changes: Mapping[str, str]) -> bytes:
        return http2.forward(self.opening, changes)

    def refusal(self, problem: Problem) -> bytes:
        settled = self._upstream is not None and self._upstream.settled
        return http2.refusal(problem, self.opening.stream, settled=settled)

    def upstream(self) -> Side:
        self._upstream = Http2Upstream()
        return self._upstream

    def status_code(self, upstream: Side) -> int:
        return http2.status_code(bytes(upstream.received))

    def speaks(self, route: Route) -> bool:
        return route.protocol == Speaks.PROTOCOL_HTTP2

    @property
    def repeatable(self) -> bool:
        return False


class Http2:
    """A connection's first bytes are HTTP/2's preface and one request."""

    def read(self, received: bytearray) -> Request | None:
        found = http2.opening(received)
        if found is None:
            return None
        opening, end = found
        del received[:end]
        return Http2Request(opening)

    def malformed(self, problem: Problem) -> bytes:
        return http2.refusal(problem, 1, settled=False)
