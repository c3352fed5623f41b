"""How long to wait before trying again; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Backoff:
    """Doubling pauses between two bounds. There is no last try."""

    first: timedelta
    most: timedelta

    def pause(self, attempts: int) -> int:
        """Return ns to wait after `attempts` tries (from 1)."""
        first = self.first // timedelta(microseconds=1) * 1000
        most = self.most // timedelta(microseconds=1) * 1000
        return min(first << min(max(attempts - 1, 0), 40), most)
