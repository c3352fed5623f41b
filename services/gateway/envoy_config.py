"""What the parts of Envoy's configuration share: inputs, names of clusters, small builders.

Everything is JSON in the form of Envoy's v3 API. Infrastructure clusters begin with "_", which no
function id does, so no request can name one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.rpc.addresses import Address
from services.gateway.addresses import envoy_address

Config = dict[str, Any]

HOLD = "_hold"
HOLD_HTTP2 = "_hold_http2"
PAGES = "_pages"
API = "_api"
PUBLIC = "_public"
CONTROL = "_control"
DEPLOYER = "_deployer"
BUILDER = "_builder"
JANITOR = "_janitor"

FUNCTION_SERVICE = "mayfly.v1.FunctionService"
BUILD_SERVICE = "mayfly.v1.BuildService"
JANITOR_SERVICE = "mayfly.v1.JanitorService"
PUBLIC_SERVICES = {
    FUNCTION_SERVICE: DEPLOYER,
    BUILD_SERVICE: BUILDER,
    JANITOR_SERVICE: JANITOR,
}

BUFFER_BYTES = 256 * 1024
HTTP_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
# The path as the client sent it; every request that goes to a function has it.
ORIGINAL_PATH = "x-forwarded-uri"
# Where a function's cluster has its time limit, in milliseconds.
METADATA = "mayfly"
TIMEOUT = "timeout_ms"
# Switches a filter on that is off by default and has no configuration of a route's own.
ON: Config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}


@dataclass(frozen=True)
class Inputs:
    """What the configuration is made from."""

    node: str
    listen: Address
    admin: Address
    api: Address
    control: Address
    hold: Address
    hold_http2: Address
    pages: Address
    public: Address
    deployer: Address
    builder: Address
    janitor: Address
    descriptors: str
    # The Lua beside the transcoder (see `transcode`).
    api_script: str = ""
    # By gRPC path: the metadata of the methods' routes.
    method_metadata: Mapping[str, Config] = field(default_factory=dict[str, Config])
    domains: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    api_body_bytes: int = 60 * 1024 * 1024
    # The file with the certificate's secret (see `tls`); empty: no TLS.
    tls_secret: str = ""
    trusted_proxies: int = 0


def listener(name: str, address: Address, connection_manager: Config) -> Config:
    """Return a listener whose connections are all HTTP."""
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
    } | connection_manager
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": name,
        "address": envoy_address(address),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [http]}],
    }


def same_path() -> Config:
    """Return the options of a connection manager that leaves paths as the client sent them.

    Nothing is decided by paths that a `..` could get around: a function's first segment names it.
    """
    return {
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
    }


def request_ids() -> Config:
    """Return the options of a connection manager that keeps a client's x-request-id as it is."""
    kind = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
    return {
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": f"type.googleapis.com/{kind}",
                "pack_trace_reason": False,
            }
        },
    }


def router() -> Config:
    """Return the last of the HTTP filters; it adds no headers of Envoy's own."""
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": f"{HTTP_FILTERS}.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }


def unbounded(action: Config) -> Config:
    """Let a stream stay open: what bounds a function's time is `public_listener.time_limit`."""
    return action | {"timeout": "0s", "idle_timeout": "0s"}


def set_header(key: str, value: str) -> Config:
    """Return the option that sets a header, whatever it was before."""
    return {
        "header": {"key": key, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
