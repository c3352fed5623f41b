"""Submit → first 200, and where the time goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.figures import Figure
from bench.http import Client, first_200
from bench.peers import Containers

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HANDLER = (EXAMPLES / "hello.py").read_text()
SCRIPT = (EXAMPLES / "notes_api.py").read_text()
STAGES = ("CHECK", "BUILD", "DEPLOY", "ROUTE")


@dataclass
class Submission:
    """The rows of one kind of source."""

    kind: str
    label: str
    source: str
    total: Figure = field(init=False)
    stages: dict[str, Figure] = field(init=False)

    def __post_init__(self) -> None:
        self.total = Figure(f"{self.label}: submit → first 200")
        self.stages = {s: Figure(f"  … of which {s.lower()}") for s in STAGES}

    def figures(self) -> list[Figure]:
        """Return the rows, the total first."""
        return [self.total, *self.stages.values()]

    def run(self, client: Client, function_id: str, mark: str) -> None:
        """Submit once, call at once, and keep the times. The source is a new one by `mark`."""
        source = f"{self.source}\n# {mark}\n"
        began = time.perf_counter()
        client.create(function_id, **{self.kind: source})
        client.expect("GET", f"/f/{function_id}/")
        self.total.add((time.perf_counter() - began) * 1000)
        for event in client.events(function_id):
            stage = event.get("stage", {})
            if stage.get("progress") == "PROGRESS_FINISHED":
                name = stage["stage"].removeprefix("STAGE_")
                if name in self.stages:
                    self.stages[name].add(float(stage["duration"].rstrip("s")) * 1000)
        client.delete(function_id)


class ContainerSubmission:
    """The same handler as an image: buildah, push, runc."""

    def __init__(self, missing: str) -> None:
        self.total = Figure("buildah + push + runc run of the handler", missing=missing)
        self.stages = {
            s: Figure(f"  … of which {s}", missing=missing) for s in ("build", "push", "run")
        }

    def figures(self) -> list[Figure]:
        """Return the rows, the total first."""
        return [self.total, *self.stages.values()]

    def run(self, containers: Containers, mark: str) -> None:
        """Build, push and run once."""
        total, stages = containers.submit(f"{HANDLER}\n# {mark}\n")
        self.total.add(total)
        for name, sample in stages.items():
            self.stages[name].add(sample)


class UvRun:
    """The same script by hand: `uv run --script` with the wheels cached."""

    def __init__(self, uv: str | None, cache: Path) -> None:
        self.total = Figure("uv run --script of the FastAPI script")
        self._uv, self._cache = uv, cache
        if uv is None:
            self.total.missing = "no uv beside this interpreter or on PATH"

    def run(self, place: Path, mark: str, free: Callable[[int], bool]) -> None:
        """Start the script, wait for its first 200, end it."""
        if self._uv is None:
            return
        if not free(8000):
            self.total.missing = "port 8000, which the script insists on, is taken"
            return
        script = place / f"{mark}.py"
        script.write_text(f"{SCRIPT}\n# {mark}\n")
        began = time.perf_counter()
        process = subprocess.Popen(
            [self._uv, "run", "--quiet", "--python", sys.executable, "--script", str(script)],
            env=self._environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            first_200("127.0.0.1", 8000, "/")
            self.total.add((time.perf_counter() - began) * 1000)
        finally:
            process.terminate()
            process.wait(10)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"UV_CACHE_DIR": str(self._cache)}


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host and the port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80
