"""The four services in one process, over real gRPC, with embedded PostgreSQL and Envoy."""
