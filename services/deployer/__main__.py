"""`python -m services.deployer`: a deployer with settings from the environment."""

from __future__ import annotations

from libs.rpc.process import load, run
from services.deployer.app import serve
from services.deployer.config import Settings


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = load(Settings)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
