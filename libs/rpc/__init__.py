"""gRPC: servers, channels, and the one place that turns errors into statuses."""
