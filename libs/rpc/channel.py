"""Channels between services."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import (
    aio_client_interceptors,  # pyright: ignore[reportUnknownVariableType]
)
from opentelemetry.sdk.trace import TracerProvider

from libs.rpc.server import MAX_MESSAGE_BYTES
from libs.rpc.tracing import is_traced


def _retry_policy(attempts: int, initial_backoff: str) -> dict[str, Any]:
    """Return gRPC's `retryPolicy` for calls that may be made again where nobody can be reached.

    attempts: with the first, at most 5. initial_backoff: as JSON has a Duration, such as "0.1s".
    """
    return {
        "maxAttempts": attempts,
        "initialBackoff": initial_backoff,
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }


_SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            # Asked a second time, it tells NOT_FOUND of what it has removed: only who knows that
            # there was a first time can read that, so that the janitor tries again by itself.
            "name": [{"service": "mayfly.v1.ReclaimerService", "method": "Reclaim"}],
        },
        {
            "name": [{}],
            # UNAVAILABLE means that the call was not begun, or that the service is restarting;
            # every method of ours is idempotent, so trying again is safe.
            "retryPolicy": _retry_policy(4, "0.05s"),
        },
    ]
}
# What a question to a service that is just ending is worth: another replica, or the next, answers.
_ASKED_AGAIN = _retry_policy(5, "0.1s")
_CONNECTION = (
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Services of one machine never sit behind an HTTP proxy of the environment.
    ("grpc.enable_http_proxy", 0),
)


def connect(address: str, tracer_provider: TracerProvider | None = None) -> grpc.aio.Channel:
    """Return a channel to "unix:/path" or "host:port"; it connects and reconnects by itself."""
    options = (
        *_CONNECTION,
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    )
    interceptors: Any = aio_client_interceptors(tracer_provider, is_traced)
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)


def connect_streams(address: str, asked_again: Sequence[str]) -> grpc.aio.Channel:
    """Return a channel for streams that the caller resumes by itself, of messages of any size.

    It is not traced, and tries nothing again but `asked_again`: full names of unary methods, as in
    "mayfly.v1.RouteService/ActivateFunction".
    """
    names = [method.split("/") for method in asked_again]
    config = {
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for service, method in names],
                "retryPolicy": _ASKED_AGAIN,
            }
        ]
    }
    options = (
        *_CONNECTION,
        ("grpc.max_receive_message_length", -1),
        ("grpc.service_config", json.dumps(config)),
    )
    return grpc.aio.insecure_channel(address, options=options)
