"""The gateway: Envoy on the public port, and its control process."""
