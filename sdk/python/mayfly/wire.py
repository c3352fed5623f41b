"""Between gRPC and this package: where a URL leads, and what a failed call says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.rpc import error_details_pb2, status_pb2

from mayfly.errors import MayflyError, Unavailable, error_class

DEFAULT_URL = "http://127.0.0.1:8080"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_STATUS_TRAILER = "grpc-status-details-bin"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{}],
            # Every method can be repeated: creation carries a request id.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@dataclass(frozen=True)
class Endpoint:
    """Where gRPC connects to."""

    url: str
    target: str
    tls: bool

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Options of a channel to it."""
        host = self.target.rpartition(":")[0]
        direct = self.target.startswith("unix:") or host in _LOOPBACK
        return [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.enable_retries", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # An HTTP proxy of the environment is for what is not on this machine.
            ("grpc.enable_http_proxy", 0 if direct else 1),
        ]


def endpoint(url: str) -> Endpoint:
    """Return where `url` leads. Raises `ValueError` that says how to write one.

    Shapes: "http://127.0.0.1:8080", "https://mayfly.example", "127.0.0.1:8080", "unix:/path".
    """
    if url.startswith("unix:"):
        return Endpoint(url, url, tls=False)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(f"{url!r} is no address; write it like {DEFAULT_URL}")
    if parts.path.strip("/") or parts.query:
        raise ValueError(f"{url!r} has a path; gRPC needs the address alone, like {DEFAULT_URL}")
    tls = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(url, f"{host}:{port or (443 if tls else 80)}", tls)


def to_error(error: grpc.RpcError, where: Endpoint) -> MayflyError:
    """Return the exception for a call that failed."""
    call: Any = error
    status: grpc.StatusCode = call.code()
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_TRAILER and isinstance(value, bytes):
            return _from_status(status_pb2.Status.FromString(value), status.name)
    message = str(call.details() or status.name)
    if status is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"cannot reach Mayfly at {where.url}: {_plain(message)}",
            fix="see that it runs there (make run), or say where it is: --url or MAYFLY_URL",
        )
    return error_class(status.name, "")(message, reason=status.name)


def is_broken(error: grpc.RpcError) -> bool:
    """Whether a stream broke off on its way, so that it can be taken up again."""
    call: Any = error
    code = call.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return True
    text = str(call.details() or "").lower()
    # A proxy that loses its upstream resets the stream, which gRPC reports by other codes.
    reset = "rst_stream" in text or "upstream" in text or "connection" in text
    return code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and reset


def _from_status(status: status_pb2.Status, name: str) -> MayflyError:
    info: Any = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            break
    return error_class(name, info.reason)(
        status.message,
        reason=info.reason or name,
        fix=info.metadata.get("fix", ""),
        field=info.metadata.get("field", ""),
    )


def _plain(message: str) -> str:
    """Return what a person can use of gRPC's own words."""
    for words in ("Connection refused", "Name or service not known", "No such file or directory"):
        if words.lower() in message.lower():
            return words.lower()
    return message.splitlines()[0] if message else "no answer"
