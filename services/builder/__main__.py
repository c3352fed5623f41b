"""`python -m services.builder`: one replica, configured by the environment."""

from __future__ import annotations

from libs.rpc.process import load, run
from services.builder.app import serve
from services.builder.config import Settings


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = load(Settings)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
