"""Clusters of functions as Envoy takes them: values in, protos out."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value
from mayfly.v1.function_pb2 import Protocol
from mayfly.v1.route_pb2 import Route

from services.gateway.addresses import Address, parse
from services.gateway.envoy_config import METADATA, TIMEOUT
from services.gateway.protos import Address as EnvoyAddress
from services.gateway.protos import (
    CircuitBreakers,
    Cluster,
    ClusterLoadAssignment,
    Endpoint,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    LbEndpoint,
    LocalityLbEndpoints,
    Pipe,
    Proto,
    RetryPolicy,
    SocketAddress,
    UpstreamOptions,
)

CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNBOUNDED = UInt32Value(value=1_000_000)  # instances are bounded by the driver
_BUFFER = UInt32Value(value=256 * 1024)
# Only what cannot have reached the function is tried again: a full backlog, a connection that its
# instance closed while it was idle.
_RETRY_ON = "connect-failure,refused-stream,reset-before-request"
_RETRIES = UInt32Value(value=8)
_BACK_OFF = RetryPolicy.RetryBackOff(
    base_interval=Duration(nanos=10_000_000), max_interval=Duration(nanos=250_000_000)
)


def cluster(route: Route, idle_seconds: float) -> Proto:
    """Return the envoy.config.cluster.v3.Cluster of a function that can be reached.

    Its name is the function's id.

    `idle_seconds` is how long an unused connection is kept. Raises `ValueError` for an endpoint
    that is no address.
    """
    made = Cluster(
        name=route.function_id,
        type=Cluster.STATIC,
        connect_timeout=Duration(seconds=5),
        per_connection_buffer_limit_bytes=_BUFFER,
        circuit_breakers=CircuitBreakers(
            thresholds=[
                CircuitBreakers.Thresholds(
                    max_connections=_UNBOUNDED,
                    max_pending_requests=_UNBOUNDED,
                    max_requests=_UNBOUNDED,
                    max_retries=_UNBOUNDED,
                )
            ]
        ),
        load_assignment=ClusterLoadAssignment(
            cluster_name=route.function_id,
            endpoints=[
                LocalityLbEndpoints(
                    lb_endpoints=[
                        LbEndpoint(endpoint=Endpoint(address=_address(parse(route.endpoint))))
                    ]
                )
            ],
        ),
    )
    if limit := route.timeout.ToMilliseconds():
        made.metadata.filter_metadata[METADATA].update({TIMEOUT: str(limit)})
    made.typed_extension_protocol_options[_OPTIONS].Pack(_options(route, idle_seconds))
    return made


def _address(address: Address) -> Proto:
    if address.path:
        return EnvoyAddress(pipe=Pipe(path=address.path))
    return EnvoyAddress(socket_address=SocketAddress(address=address.host, port_value=address.port))


def _options(route: Route, idle_seconds: float) -> Proto:
    common = HttpProtocolOptions(idle_timeout=Duration(nanos=0))
    common.idle_timeout.FromNanoseconds(round(idle_seconds * 1e9))
    if route.one_request_per_connection:
        common.max_requests_per_connection.value = 1
    explicit = UpstreamOptions.ExplicitHttpConfig()
    if route.protocol == Protocol.PROTOCOL_HTTP2:
        explicit.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    else:
        explicit.http_protocol_options.CopyFrom(Http1ProtocolOptions(enable_trailers=True))
    retry = RetryPolicy(retry_on=_RETRY_ON, num_retries=_RETRIES, retry_back_off=_BACK_OFF)
    return UpstreamOptions(
        common_http_protocol_options=common, explicit_http_config=explicit, retry_policy=retry
    )
