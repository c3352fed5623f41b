"""The driver that the settings name. Each is imported only where it is used."""

from __future__ import annotations

from services.deployer.config import Settings
from services.deployer.drivers.base import Driver


def driver_of(settings: Settings) -> Driver:
    """Return the driver that `settings.driver` names."""
    match settings.driver:
        case "process":
            from services.deployer.drivers.process.driver import ProcessDriver

            ports = [settings.public_port] if settings.public_port else []
            return ProcessDriver(settings.data_dir, public_ports=ports)
        case other:
            raise ValueError(f"the driver {other} is not there yet")
