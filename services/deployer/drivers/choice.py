"""The driver that the settings name. Each is imported only where it is used."""

from __future__ import annotations

from services.deployer.config import Settings
from services.deployer.drivers.base import Driver
from services.deployer.drivers.cluster.settings import ClusterSettings


def driver_of(settings: Settings) -> Driver:
    """Return the driver that `settings.driver` names."""
    match settings.driver:
        case "process":
            from services.deployer.drivers.process.driver import ProcessDriver

            ports = [settings.public_port] if settings.public_port else []
            return ProcessDriver(settings.data_dir, public_ports=ports)
        case "knative":
            from services.deployer.drivers.knative.driver import KnativeDriver

            return KnativeDriver(_cluster(settings), ingress=settings.knative_ingress)
        case "deployment":
            from services.deployer.drivers.deployment.driver import DeploymentDriver
            from services.deployer.drivers.deployment.shape import Setup

            return DeploymentDriver(
                Setup(_cluster(settings), settings.python_image, settings.index_secret)
            )


def _cluster(settings: Settings) -> ClusterSettings:
    return ClusterSettings(
        installation=settings.installation,
        namespace=settings.functions_namespace,
        runtime_class=settings.runtime_class,
        image_pull_secrets=settings.image_pull_secrets,
        cluster_domain=settings.cluster_domain,
        kubeconfig=settings.kubeconfig,
    )
