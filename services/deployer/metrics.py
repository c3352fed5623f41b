"""What Prometheus reads of a deployer."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable

from mayfly.v1.function_pb2 import State
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.deployer.catalog import Catalog
from services.deployer.reconciler import Reconciler
from services.deployer.routes import Gateways


class DeployerCollector(Collector):
    """Counts when it is asked, so that nothing is counted on the way of a request."""

    def __init__(self, catalog: Catalog, reconciler: Reconciler, gateways: Gateways) -> None:
        self._catalog = catalog
        self._reconciler = reconciler
        self._gateways = gateways

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the figures as they are now."""
        functions = GaugeMetricFamily(
            "mayfly_functions", "Functions that are not reclaimed, by state.", labels=["state"]
        )
        states = Count(entry.state for entry in list(self._catalog.entries.values()))
        for number, count in states.items():
            name = State.Name(number)  # pyright: ignore[reportArgumentType] - a number of State
            functions.add_metric([name.removeprefix("STATE_")], count)
        yield functions
        yield GaugeMetricFamily(
            "mayfly_reconciling", "Functions that are being worked on.", value=self._reconciler.busy
        )
        yield GaugeMetricFamily(
            "mayfly_gateways", "Gateways that are connected.", value=len(self._gateways.streams)
        )


def register(registry: CollectorRegistry, collector: DeployerCollector) -> None:
    """Add a deployer's figures to `registry`."""
    registry.register(collector)
