"""Builds on this machine: Python environments by uv, Go programs by the Go toolchain."""
