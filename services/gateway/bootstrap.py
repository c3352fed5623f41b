"""Envoy's bootstrap: listeners, infrastructure clusters, and where the rest comes from.

Values in, configuration out, in the form of envoy.config.bootstrap.v3.Bootstrap. Functions'
clusters are not in it; they come by ADS (see `xds`).
"""

from __future__ import annotations

from libs.rpc.addresses import Address
from services.gateway.addresses import envoy_address
from services.gateway.api_listener import api_listener
from services.gateway.envoy_config import (
    API,
    BUFFER_BYTES,
    BUILDER,
    CONTROL,
    DEPLOYER,
    HOLD,
    HOLD_HTTP2,
    JANITOR,
    PAGES,
    PUBLIC,
    Config,
    Inputs,
)
from services.gateway.public_listener import public_listener

_UNBOUNDED = 1_000_000  # for circuit breakers: the services bound themselves
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def bootstrap(inputs: Inputs) -> Config:
    """Return the whole configuration."""
    control = {"grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL}}]}
    return {
        "node": {"id": inputs.node, "cluster": "mayfly-gateway"},
        "admin": {"address": envoy_address(inputs.admin)},
        # Function clusters have no statistics of their own (24 kB each without); load reports
        # read the hosts' counters, which are not subject to this.
        "stats_config": {
            "stats_matcher": {
                "exclusion_list": {"patterns": [{"safe_regex": {"regex": r"cluster\.[^_].*"}}]}
            }
        },
        # Spans are wanted as soon as they are over; Envoy's own interval is 5 s.
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        "tracing.opentelemetry.flush_interval_ms": 200,
                        "tracing.opentelemetry.min_flush_spans": 16,
                    },
                }
            ]
        },
        "cluster_manager": {
            "load_stats_config": {"api_type": "GRPC", "transport_api_version": "V3"} | control
        },
        "dynamic_resources": {
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3"} | control,
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "listeners": [public_listener(inputs), api_listener(inputs)],
            "clusters": _clusters(inputs),
        },
    }


def _clusters(inputs: Inputs) -> list[Config]:
    one_request = {"max_requests_per_connection": 1}
    return [
        infrastructure_cluster(CONTROL, inputs.control, http2=True),
        infrastructure_cluster(DEPLOYER, inputs.deployer, http2=True),
        infrastructure_cluster(BUILDER, inputs.builder, http2=True),
        infrastructure_cluster(JANITOR, inputs.janitor, http2=True),
        infrastructure_cluster(PUBLIC, inputs.public, http2=True),
        infrastructure_cluster(API, inputs.api, http2=True),
        infrastructure_cluster(PAGES, inputs.pages),
        # A held connection becomes the function's own, so it must carry one request alone.
        infrastructure_cluster(HOLD, inputs.hold, options=one_request),
        infrastructure_cluster(HOLD_HTTP2, inputs.hold_http2, http2=True, options=one_request),
    ]


def infrastructure_cluster(
    name: str, address: Address, *, http2: bool = False, options: Config | None = None
) -> Config:
    """Return a static cluster of one address; a host name is looked up again and again."""
    explicit: Config = {"http_protocol_options": {"enable_trailers": True}}
    if http2:  # where a connection has one request alone there is nothing to keep alive
        keepalive = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
        explicit = {"http2_protocol_options": {} if options else keepalive}
    thresholds = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNBOUNDED
    )
    endpoint = {"endpoint": {"address": envoy_address(address)}}
    return {
        "name": name,
        "type": "STRICT_DNS" if address.is_name else "STATIC",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"type.googleapis.com/{_OPTIONS}",
                "common_http_protocol_options": options or {},
                "explicit_http_config": explicit,
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
