"""Clusters of functions as Envoy takes them: values in, protos out."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value
from mayfly.v1.function_pb2 import Protocol
from mayfly.v1.route_pb2 import Route

from libs.rpc.addresses import Address
from services.gateway.envoy_config import METADATA, TIMEOUT
from services.gateway.protos import Address as EnvoyAddress
from services.gateway.protos import (
    CircuitBreakers,
    Cluster,
    ClusterLoadAssignment,
    ConfigSource,
    Endpoint,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    LbEndpoint,
    LocalityLbEndpoints,
    Pipe,
    PreviousHosts,
    Proto,
    RetryPolicy,
    SocketAddress,
    UpstreamOptions,
)

CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNBOUNDED = UInt32Value(value=1_000_000)  # instances are bounded by the driver
_BUFFER = UInt32Value(value=256 * 1024)
# Only what cannot have reached the function is tried again: a full backlog, a connection that its
# instance closed while it was idle, an instance that is gone.
_RETRY_ON = "connect-failure,refused-stream,reset-before-request"
_CONNECT = Duration(seconds=5)
# What is gone from the network does not refuse: it says nothing. A lost SYN is sent again after
# 1 s (RFC 6298), which a new try does as well.
_CONNECT_OVER_NETWORK = Duration(seconds=1)
# Without a time limit: until they are there the control process has the function's requests.
_ENDPOINTS_BY_ADS = ConfigSource(
    ads={}, resource_api_version="V3", initial_fetch_timeout=Duration(seconds=0)
)


def cluster(route: Route, addresses: Sequence[Address], idle_seconds: float) -> Proto:
    """Return the envoy.config.cluster.v3.Cluster of a function that is reached at `addresses`.

    Its name is the function's id. `idle_seconds` is how long an unused connection is kept. Where
    its endpoints move, they are not in it (see `assignment`), so that the cluster stays when they
    do: a load report counts the open requests of clusters that are there.
    """
    if moves(addresses):
        made = _cluster(route)
        made.type = Cluster.EDS
        made.lb_policy = Cluster.LEAST_REQUEST
        made.connect_timeout.CopyFrom(_CONNECT_OVER_NETWORK)
        made.eds_cluster_config.eds_config.CopyFrom(_ENDPOINTS_BY_ADS)
    else:
        made = _cluster(route)
        made.load_assignment.CopyFrom(assignment(route, addresses))
    if limit := route.timeout.ToMilliseconds():
        made.metadata.filter_metadata[METADATA].update({TIMEOUT: str(limit)})
    common = HttpProtocolOptions(idle_timeout=Duration(nanos=0))
    common.idle_timeout.FromNanoseconds(round(idle_seconds * 1e9))
    if route.one_request_per_connection:
        common.max_requests_per_connection.value = 1
    retry = _retry(over_network=moves(addresses))
    made.typed_extension_protocol_options[_OPTIONS].Pack(_options(route, common, retry))
    return made


def parked(route: Route, hold: Address) -> Proto:
    """Return the cluster of a function that is without an endpoint for a moment.

    Requests that Envoy is trying again meanwhile then reach the control process, as they would
    without a cluster had they come later.
    """
    made = _cluster(route)
    made.load_assignment.CopyFrom(assignment(route, [hold]))
    common = HttpProtocolOptions()
    common.max_requests_per_connection.value = 1  # the connection becomes the function's own
    made.typed_extension_protocol_options[_OPTIONS].Pack(_options(route, common, None))
    return made


def moves(addresses: Sequence[Address]) -> bool:
    """Whether a function runs on machines that come and go, and not once beside the gateway."""
    first = addresses[0]
    return len(addresses) > 1 or not (first.path or ipaddress.ip_address(first.host).is_loopback)


def _cluster(route: Route) -> Proto:
    return Cluster(
        name=route.function_id,
        type=Cluster.STATIC,
        connect_timeout=_CONNECT,
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
    )


def assignment(route: Route, addresses: Sequence[Address]) -> Proto:
    """Return the envoy.config.endpoint.v3.ClusterLoadAssignment of a function.

    An endpoint with a `hostname` gets it as `Host` (see `public_listener`); without, the caller's.
    """
    endpoints = [
        LbEndpoint(endpoint=Endpoint(address=_address(address), hostname=route.host))
        for address in addresses
    ]
    return ClusterLoadAssignment(
        cluster_name=route.function_id, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
    )


def _address(address: Address) -> Proto:
    if address.path:
        return EnvoyAddress(pipe=Pipe(path=address.path))
    return EnvoyAddress(socket_address=SocketAddress(address=address.host, port_value=address.port))


def _retry(*, over_network: bool) -> Proto:
    """Return when a request is tried again.

    Beside the gateway a backlog empties within milliseconds. An endpoint of a cluster that is gone
    is known to be gone only after its driver has seen that: about 2.8 s of tries, each of them at
    another endpoint where there is one.
    """
    made = RetryPolicy(
        retry_on=_RETRY_ON,
        num_retries=UInt32Value(value=16 if over_network else 8),
        retry_back_off=RetryPolicy.RetryBackOff(
            base_interval=Duration(nanos=10_000_000),
            max_interval=Duration(nanos=500_000_000 if over_network else 250_000_000),
        ),
    )
    if over_network:
        previous = RetryPolicy.RetryHostPredicate(name="envoy.retry_host_predicates.previous_hosts")
        previous.typed_config.Pack(PreviousHosts())
        made.retry_host_predicate.append(previous)
        made.host_selection_retry_max_attempts = 5
    return made


def _options(route: Route, common: Proto, retry: Proto | None) -> Proto:
    explicit = UpstreamOptions.ExplicitHttpConfig()
    if route.protocol == Protocol.PROTOCOL_HTTP2:
        explicit.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    else:
        explicit.http_protocol_options.CopyFrom(Http1ProtocolOptions(enable_trailers=True))
    return UpstreamOptions(
        common_http_protocol_options=common, explicit_http_config=explicit, retry_policy=retry
    )
