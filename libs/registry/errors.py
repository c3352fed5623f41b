"""What may go wrong between us and a registry."""

from __future__ import annotations


class RegistryError(Exception):
    """The registry refused, or answered what cannot be understood."""


class Unreachable(RegistryError):
    """No answer, or one that says to come again (429, 5xx): it may be tried again."""


class Denied(RegistryError):
    """Credentials are missing, wrong, or do not reach this far (401, 403)."""


class NotFound(RegistryError):
    """There is no such repository, manifest or blob."""


class Unsupported(RegistryError):
    """This registry does not do that (405, or its code UNSUPPORTED)."""
