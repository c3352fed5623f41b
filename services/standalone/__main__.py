"""`python -m services.standalone`: the platform on one machine, configured by the environment."""

from __future__ import annotations

import sys

from libs.rpc.process import load, run
from services.standalone.app import serve
from services.standalone.config import StandaloneSettings


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = load(StandaloneSettings)
    run(lambda stop: serve(settings, stop, announce))


def announce(url: str) -> None:
    """Say on standard output that the platform answers, and where."""
    sys.stdout.write(f"Mayfly is ready at {url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
