# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Envoy's protos, of the package xds-protos, which has no types: everything from it is `Any`."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

Proto = Any

Address: Proto = address_pb2.Address
CircuitBreakers: Proto = circuit_breaker_pb2.CircuitBreakers
Cluster: Proto = cluster_pb2.Cluster
ClusterLoadAssignment: Proto = endpoint_pb2.ClusterLoadAssignment
ConfigSource: Proto = config_source_pb2.ConfigSource
DeltaDiscoveryResponse: Proto = discovery_pb2.DeltaDiscoveryResponse
Endpoint: Proto = endpoint_components_pb2.Endpoint
Http1ProtocolOptions: Proto = protocol_pb2.Http1ProtocolOptions
Http2ProtocolOptions: Proto = protocol_pb2.Http2ProtocolOptions
HttpProtocolOptions: Proto = protocol_pb2.HttpProtocolOptions
LbEndpoint: Proto = endpoint_components_pb2.LbEndpoint
LoadStatsResponse: Proto = lrs_pb2.LoadStatsResponse
LocalityLbEndpoints: Proto = endpoint_components_pb2.LocalityLbEndpoints
Pipe: Proto = address_pb2.Pipe
PreviousHosts: Proto = previous_hosts_pb2.PreviousHostsPredicate
Resource: Proto = discovery_pb2.Resource
RetryPolicy: Proto = route_components_pb2.RetryPolicy
SocketAddress: Proto = address_pb2.SocketAddress
UpstreamOptions: Proto = http_protocol_options_pb2.HttpProtocolOptions


def add_discovery(servicer: Any, server: Any) -> None:
    """Register a servicer of envoy.service.discovery.v3.AggregatedDiscoveryService.

    It needs `DeltaAggregatedResources` alone; the protocol's other variant is not spoken.
    """

    methods = ads_pb2_grpc.AggregatedDiscoveryServiceServicer()
    methods.DeltaAggregatedResources = servicer.DeltaAggregatedResources
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(methods, server)


def add_load_reporting(servicer: Any, server: Any) -> None:
    """Register a servicer of envoy.service.load_stats.v3.LoadReportingService."""
    lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(servicer, server)
