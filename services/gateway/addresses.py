"""Addresses in the form of Envoy's configuration."""

from __future__ import annotations

from typing import Any

from libs.rpc.addresses import Address


def envoy_address(address: Address) -> dict[str, Any]:
    """Return it as envoy.config.core.v3.Address."""
    if address.path:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}
