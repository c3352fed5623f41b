"""When to take a broken stream up again; pure."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_PAUSE_SECONDS = 0.05
MOST_PAUSE_SECONDS = 2.0
GIVE_UP_SECONDS = 60.0


@dataclass
class Resumption:
    """Counts how long a stream has brought nothing."""

    # Seconds without anything, after which the error is the caller's.
    patience: float = GIVE_UP_SECONDS
    _waited: float = field(default=0.0, init=False)
    _pause: float = field(default=FIRST_PAUSE_SECONDS, init=False)

    def progressed(self) -> None:
        """Note that the stream has brought something."""
        self._waited, self._pause = 0.0, FIRST_PAUSE_SECONDS

    def next_pause(self) -> float | None:
        """Return seconds to wait before the next try; None to give up."""
        if self._waited >= self.patience:
            return None
        pause = self._pause
        self._waited += pause
        self._pause = min(pause * 2, MOST_PAUSE_SECONDS)
        return pause
