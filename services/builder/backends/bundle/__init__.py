"""Builds for a cluster that runs Python without an image: files, and what they require, locked."""
