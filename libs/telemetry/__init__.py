"""Logs, traces and metrics."""

from libs.telemetry.setup import Telemetry, setup

__all__ = ["Telemetry", "setup"]
