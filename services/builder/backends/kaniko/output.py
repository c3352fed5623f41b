"""What a Kaniko pod prints: its own messages as JSON, and between them what steps print."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

# The command prints how it is used after an error of its own.
_USAGE = re.compile(r"Usage:\s*$")
_ERROR = re.compile(
    r"(Error: |error building image: |error checking push permissions|error pushing image: )"
)
_RUNNING = "Running: ["
_LINES = 400


class Output:
    """Reads lines as they come, and keeps of them what a failure is explained with.

    `error` is what Kaniko gave up with, "" before. `step` are the last lines of the step that ran
    last, oldest first.
    """

    def __init__(self) -> None:
        self.error = ""
        self._step: deque[str] = deque(maxlen=_LINES)
        self._before: deque[str] = deque(maxlen=_LINES)
        self._over = False

    @property
    def step(self) -> Sequence[str]:
        """The last lines that the last step printed.

        They come by another stream than Kaniko's own messages, and may overtake the one that says
        that the step begins.
        """
        return list(self._step or self._before)

    def read(self, raw: str) -> str:
        """Take a line; return it as it goes to a person, "" where it does not."""
        if self._over:
            return ""
        line = raw.rstrip()
        message = _message(line)
        if message is not None:
            if message.startswith(_RUNNING):
                self._before, self._step = self._step, deque(maxlen=_LINES)
            return message
        if self.error and _USAGE.match(line):
            self._over = True
            return ""
        if _ERROR.match(line):
            self.error = line.removeprefix("Error: ")
        elif not self.error:
            self._step.append(line)
        return line


def _message(line: str) -> str | None:
    """Return the text of a message of Kaniko's own, None for any other line."""
    if not line.startswith('{"level":'):
        return None
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(entry, dict):
        return None
    return str(cast("dict[str, Any]", entry).get("msg", ""))
