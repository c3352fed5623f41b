"""Registries of images, and nothing else: the only package that imports their HTTP client."""

from libs.registry.errors import Denied, NotFound, RegistryError, Unreachable, Unsupported
from libs.registry.reference import Reference, parse
from libs.registry.repository import Manifest, Repository, digest_of
from libs.registry.transport import Transport

__all__ = [
    "Denied",
    "Manifest",
    "NotFound",
    "Reference",
    "RegistryError",
    "Repository",
    "Transport",
    "Unreachable",
    "Unsupported",
    "digest_of",
    "parse",
]
