"""The load reporting server: what functions are used for, as Envoy counts it each second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.gateway.protos import LoadStatsResponse, Proto

INTERVAL_SECONDS = 1


class LoadReportingService:
    """Hands each report on, as {function id: (requests begun, requests open)}."""

    def __init__(self, reported: Callable[[dict[str, tuple[int, int]]], None]) -> None:
        self._reported = reported

    async def StreamLoadStats(
        self, request_iterator: AsyncIterator[Proto], context: Any
    ) -> AsyncIterator[Proto]:
        """Ask for all clusters, then take a report each interval until Envoy goes."""
        yield LoadStatsResponse(
            send_all_clusters=True, load_reporting_interval=Duration(seconds=INTERVAL_SECONDS)
        )
        first = True
        try:
            async for request in request_iterator:
                if not first:  # the first message says who asks, and reports nothing
                    self._reported(loads(request.cluster_stats))
                first = False
        finally:
            self._reported({})  # an Envoy that has gone has no request open


def loads(stats: Iterable[Proto]) -> dict[str, tuple[int, int]]:
    """Return (begun, open) by function id, from envoy.config.endpoint.v3.ClusterStats.

    Infrastructure is left out.
    """
    found: dict[str, tuple[int, int]] = {}
    for cluster in stats:
        if cluster.cluster_name.startswith("_"):
            continue
        begun = sum(place.total_issued_requests for place in cluster.upstream_locality_stats)
        running = sum(place.total_requests_in_progress for place in cluster.upstream_locality_stats)
        found[cluster.cluster_name] = (begun, running)
    return found
