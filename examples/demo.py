"""`make demo`: the platform from start to stop, with a lease that ends before your eyes.

Everything lies in a temporary directory and on a free port, so a Mayfly that runs already is not
disturbed. Exits with 0 when every step did what it shows.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

EXAMPLES = Path(__file__).resolve().parent
PYTHON = sys.executable
START_SECONDS = 90
SHORT_LEASE_SECONDS = 5


def main() -> int:
    """Run the demonstration; return the exit status."""
    data = Path(tempfile.mkdtemp(prefix="mayfly-demo-"))
    data.chmod(0o711)
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {
        "MAYFLY_DATA_DIR": str(data),
        "MAYFLY_LISTEN": url.removeprefix("http://"),
        "MAYFLY_PUBLIC_URL": url,
        "MAYFLY_URL": url,
    }
    say("Starting the platform: builder, deployer, janitor, gateway, PostgreSQL, Envoy")
    platform = subprocess.Popen(
        [PYTHON, "-m", "services.standalone"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        wait_until_ready(platform, url)
        show(url, environment)
    finally:
        say("Stopping")
        platform.send_signal(signal.SIGINT)
        status = platform.wait(timeout=60)
        shutil.rmtree(data)
    print(f"stopped with status {status}; nothing is left in {data}")
    return status


def show(url: str, environment: dict[str, str]) -> None:
    """Deploy, call, let a lease end, and look at what is left of it."""

    def mayfly(*arguments: str, status: int = 0) -> None:
        print(f"\n$ mayfly {' '.join(arguments)}", flush=True)
        command = [PYTHON, "-m", "mayfly.cli.main", *arguments]
        done = subprocess.run(command, env=environment, check=False, cwd=EXAMPLES.parent)
        if done.returncode != status:
            raise SystemExit(f"mayfly {arguments[0]} ended with {done.returncode}, not {status}")

    def call(path: str, *, status: int = 200) -> None:
        answer = httpx.get(url + path, timeout=60)
        print(f"\n$ curl {url}{path}\n{answer.status_code} {answer.text.strip()[:300]}", flush=True)
        if answer.status_code != status:
            raise SystemExit(f"{path} answered {answer.status_code}, not {status}")

    say("A handler: one function, no server")
    mayfly("deploy", "examples/hello.py", "--name", "hello", "--ttl", "10m")
    call("/f/hello/anything?name=you")
    say("A FastAPI program with its own port 8000 and its own requirements")
    mayfly("deploy", "examples/notes_api.py", "--name", "notes", "--ttl", "10m")
    call("/f/notes/")
    say("A mistake names its line, and what to change (exit status 5)")
    mayfly("deploy", "examples/broken.py", "--name", "broken", status=5)
    say(f"A lease of {SHORT_LEASE_SECONDS} s")
    mayfly("deploy", "examples/hello.py", "--name", "brief", "--ttl", f"{SHORT_LEASE_SECONDS}s")
    call("/f/brief?name=while+it+lasts")
    mayfly("list")
    say("Waiting for its end")
    wait_for_receipt(url, "brief")
    call("/f/brief", status=404)
    say("What was removed, and what was looked at afterwards")
    mayfly("receipt", "brief")
    say("One trace from submission to receipt")
    mayfly("trace", "brief")
    mayfly("sweep", "--dry-run")


def wait_until_ready(platform: subprocess.Popen[bytes], url: str) -> None:
    """Return once the platform answers; end the program when it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if platform.poll() is not None:
            raise SystemExit(f"the platform ended with {platform.returncode}")
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"the platform did not answer within {START_SECONDS} s")


def wait_for_receipt(url: str, function: str) -> None:
    """Return once the function's receipt exists."""
    deadline = time.monotonic() + SHORT_LEASE_SECONDS + 30
    while time.monotonic() < deadline:
        if httpx.get(f"{url}/v1/receipts/{function}", timeout=5).status_code == 200:
            return
        time.sleep(0.1)
    raise SystemExit(f"no receipt of {function}")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
