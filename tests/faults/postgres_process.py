"""`python -m tests.faults.postgres_process DIR`: PostgreSQL for services that run apart.

Writes its URL to `DIR/database-url` once it answers; ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from services.standalone.postgres import EmbeddedPostgres


async def main(directory: Path) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    postgres = EmbeddedPostgres(directory / "postgres")
    await postgres.start()
    partial = directory / ".database-url"
    partial.write_text(postgres.dsn)
    os.replace(partial, directory / "database-url")
    await stop.wait()
    await postgres.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
