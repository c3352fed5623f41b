"""`python -m bench`: takes the figures and prints one table.

The rows of one group are taken in turn, one sample each, so that whatever else the machine does
falls on all of them alike.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.cold import ContainerColdStart, IdleHandlers
from bench.figures import Figure, text_table
from bench.http import Client
from bench.many import Many
from bench.peers import Containers, install
from bench.results import keep
from bench.submit import HANDLER, SCRIPT, ContainerSubmission, Submission, UvRun
from bench.warm import WarmPath
from tests.conformance.standalone import Standalone

ENVIRONMENT = {
    # Cold starts are wanted soon after the last request.
    "MAYFLY_IDLE_STOP": "3s",
    "MAYFLY_LOG_LEVEL": "ERROR",
}


@contextmanager
def mayfly(place: Path) -> Iterator[Standalone]:
    """A platform of this checkout."""
    place.mkdir(mode=0o755, exist_ok=True)
    platform = Standalone(place / "d", env=ENVIRONMENT)
    platform.start()
    try:
        yield platform
    finally:
        platform.stop()


@contextmanager
def containers(place: Path, wanted: bool) -> Iterator[tuple[Containers | None, str]]:
    """The container peers, or why there are none."""
    missing = install() if wanted else dict.fromkeys(["containers"], "not asked for")
    if missing:
        yield None, "; ".join(f"{tool}: {why}" for tool, why in missing.items())
        return
    peers = Containers(place / "c")
    try:
        peers.start()
        yield peers, ""
    finally:
        peers.stop()


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def uv_path() -> str | None:
    """Return uv beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def take(rounds: int, functions: int, peers_wanted: bool) -> Iterator[list[Figure]]:
    """Yield the figures group by group."""
    place = Path(tempfile.mkdtemp(prefix="mayfly-bench-"))
    place.chmod(0o755)
    try:
        with containers(place, peers_wanted) as (peers, missing), mayfly(place) as platform:
            client = Client(platform.url)
            yield submissions(client, peers, missing, place, rounds)
            yield cold_starts(client, peers, missing, rounds)
            yield warm_path(client, platform, place, max(3, rounds // 10))
            client.close()
        # A platform of its own: memory is compared before and after.
        with mayfly(place / "many") as platform:
            client = Client(platform.url)
            crowd = Many(client, platform.pid, functions)
            crowd.run(rounds)
            client.close()
            yield crowd.figures()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def submissions(
    client: Client, peers: Containers | None, missing: str, place: Path, rounds: int
) -> list[Figure]:
    """Submit → first 200, of the handler and of the FastAPI script, against the peers."""
    handler = Submission("handler", "handler", HANDLER)
    script = Submission("script", "FastAPI script, wheels cached", SCRIPT)
    image = ContainerSubmission(missing)
    by_hand = UvRun(uv_path(), place / "uv-cache")
    handler.total.peer, handler.total.bound = image.total, 1 / 20
    script.total.peer = by_hand.total
    # The first of each fills the caches of wheels and of pages, and is not counted.
    for number in range(rounds + 1):
        handler.run(client, f"bench-h{number}", f"handler {number}")
        if peers is not None:
            image.run(peers, f"handler {number}")
        if number <= script_rounds(rounds):
            script.run(client, f"bench-s{number}", f"script {number}")
            by_hand.run(place, f"script{number}", is_free)
        if number == 0:
            for figure in (*handler.figures(), *image.figures(), *script.figures(), by_hand.total):
                figure.samples.clear()
        progress("submit", number, rounds)
    return [*handler.figures(), *image.figures(), *script.figures(), by_hand.total]


def script_rounds(rounds: int) -> int:
    """Return how often the slow script is submitted."""
    return max(3, rounds // 3)


def cold_starts(
    client: Client, peers: Containers | None, missing: str, rounds: int
) -> list[Figure]:
    """Cold starts of an idle handler against `runc run`."""
    handlers = IdleHandlers(client, count=min(rounds, 25))
    container = ContainerColdStart(peers, missing)
    handlers.total.peer = container.total
    for number in range(rounds):
        handlers.run()
        container.run()
        progress("cold start", number + 1, rounds)
    handlers.close()
    return [handlers.total, handlers.warm, container.total]


def warm_path(client: Client, platform: Standalone, place: Path, rounds: int) -> list[Figure]:
    """What the gateway costs a request, against a static Envoy and against nothing."""
    path = WarmPath(client, platform.data_dir, platform.pid, place)
    try:
        for number in range(rounds):
            path.run()
            progress("warm path", number + 1, rounds)
        return path.figures()
    finally:
        path.close()


def progress(group: str, done: int, of: int) -> None:
    """Say how far it is, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{group}: {done}/{of} ", end="" if done < of else "\n", file=sys.stderr)


def main() -> int:
    """Take the figures, print them, and write them where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="samples of each row (50)")
    parser.add_argument("--functions", type=int, default=10_000, help="how many are many (10,000)")
    parser.add_argument("--no-peers", action="store_true", help="leave buildah and runc out")
    parser.add_argument("--results", type=Path, help="also keep the table in this file")
    options = parser.parse_args()
    where = machine.describe()
    figures: list[Figure] = []
    for group in take(options.rounds, options.functions, not options.no_peers):
        figures += group
    print(f"{where}\n\n{text_table(figures)}")
    if options.results:
        keep(options.results, "One machine", where, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
