"""What a store lets through."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """PostgreSQL did not answer within the time allowed for reconnecting."""


class UniqueViolation(Exception):
    """A row with this key exists; `constraint` names the rule."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint
