"""Image of a new handler: submitted → pushed, on one base and one registry.

`layers` is the builder's backend; Kaniko is a pod made by hand that gets its context at once, and
buildah runs on this machine where it is installed. One sample each in turn. Needs the variables of
docs/kubernetes.md: `python -m bench.cluster.images --rounds 5`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import runtimes.python
from bench import machine
from bench.figures import Figure, text_table
from bench.http import BenchFailed
from bench.results import keep
from bench.submit import HANDLER
from libs.registry import Repository, Transport
from services.builder.backends.base import Order
from services.builder.backends.environment.archive import Limits
from services.builder.backends.environment.interpreters import Interpreters
from services.builder.backends.environment.uv import Paths, Uv
from services.builder.backends.layers.backend import LayersBackend
from services.builder.backends.layers.opened import open_layers
from services.builder.backends.locks import Locks

_SECONDS = 300
_DOCKERFILE = """FROM %s
COPY runtime /mayfly/runtime
COPY handler.py /function/handler.py
USER 65532
ENTRYPOINT ["python3", "/mayfly/runtime/container.py"]
"""


class Quiet:
    """Progress that nobody looks at."""

    def log(self, line: str) -> None:
        """Drop a line."""

    def detail(self, text: str) -> None:
        """Drop a detail."""

    @contextmanager
    def step(self, stage: Any) -> Iterator[Quiet]:
        """A step."""
        yield self

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        """A span."""
        yield


def context(source: str, base: str) -> bytes:
    """Return a context, as tar.gz, that gives the same image as layers do."""
    files = {"Dockerfile": _DOCKERFILE % base, "handler.py": source}
    for file in Path(next(iter(runtimes.python.__path__))).glob("*.py"):
        files[f"runtime/{file.name}"] = file.read_text()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return whole.getvalue()


def by_layers(registry: str, base: str, folder: Path, stack: AsyncExitStack) -> LayersBackend:
    """Return the backend; what it would keep in a database is not touched without requirements."""
    none = cast("Any", None)
    uv = Uv("", {}, sdists=False)
    paths = Paths(folder / "cache", folder / "pythons")
    found = Interpreters(os.environ, paths.interpreters, None)
    return open_layers(
        stack,
        registry=registry,
        insecure=True,
        auth=None,
        base_image=base,
        platform="x86_64-manylinux_2_28",
        build_timeout=timedelta(seconds=_SECONDS),
        at_once=1,
        uv=uv,
        catalog=none,
        found=found,
        locks=Locks(uv, none, 1),
        limits=Limits(bytes=1 << 24, files=100),
    )


def _order(source: str, folder: Path) -> Order:
    uid = secrets.token_hex(6)
    return Order(
        id=secrets.token_hex(10),
        uid=uid,
        token="bench",
        runtime="python",
        kind="handler",
        source=source.encode(),
        directory=folder / f"{uid}.artefact",
        files=folder / f"{uid}.files",
        workspace=folder / f"{uid}.workspace",
    )


def by_kaniko(image: str, namespace: str, source: str, base: str, target: str) -> None:
    """Build in a pod made by hand. Raises `BenchFailed`."""
    name = f"kaniko-{secrets.token_hex(4)}"
    arguments = ["--context=tar://stdin", f"--destination={target}", "--insecure"]
    command = ["kubectl", "run", name, "-n", namespace, "--rm", "-i", "--quiet"]
    command += ["--restart=Never", f"--image={image}", "--", *arguments, "--insecure-pull"]
    _run(command, context(source, base))


def by_buildah(source: str, base: str, target: str) -> None:
    """Build and push on this machine. Raises `BenchFailed`."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(context(source, base))) as tar:
            tar.extractall(folder, filter="data")
        _run(["buildah", "build", "--tls-verify=false", "-q", "-t", target, folder], b"")
        _run(["buildah", "push", "-q", "--tls-verify=false", target], b"")


def _run(command: list[str], given: bytes) -> None:
    done = subprocess.run(command, input=given, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise BenchFailed(f"{command[0]}: {(done.stderr or done.stdout).decode()[-500:]}")


async def measure(rounds: int, namespace: str) -> list[Figure]:
    """Take the figures; the first of each reads the base image and is not counted."""
    host = os.environ["MAYFLY_TEST_REGISTRY"]
    base = os.environ["MAYFLY_TEST_PYTHON_IMAGE"]
    kaniko_image = os.environ["MAYFLY_TEST_KANIKO_IMAGE"]
    prefix = f"bench-{secrets.token_hex(4)}"
    kaniko = Figure("kaniko: pod by hand → pushed")
    buildah = Figure("buildah: build and push", missing="buildah is not installed")
    layers = Figure("layers: submitted → pushed", peer=kaniko, bound=1 / 100)
    beside = Figure("layers, the same", peer=buildah, bound=1 / 10)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = by_layers(f"{host}/{prefix}", base, folder, stack)
        for number in range(rounds + 1):
            source = f"{HANDLER}\n# {prefix} {number}\n"
            order = _order(source, folder)
            began = time.perf_counter()
            await backend.build(order, Quiet())
            layers.add((time.perf_counter() - began) * 1000)
            for path in (order.files, order.workspace):
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            target = f"{host}/{prefix}/functions:"
            began = time.perf_counter()
            await asyncio.to_thread(
                by_kaniko, kaniko_image, namespace, source, base, f"{target}kaniko-{number}"
            )
            kaniko.add((time.perf_counter() - began) * 1000)
            if shutil.which("buildah"):
                began = time.perf_counter()
                await asyncio.to_thread(by_buildah, source, base, f"{target}buildah-{number}")
                buildah.add((time.perf_counter() - began) * 1000)
                _run(["buildah", "rmi", f"{target}buildah-{number}"], b"")
            if number == 0:
                for figure in (layers, kaniko, buildah):
                    figure.samples.clear()
        beside.samples = layers.samples
        await _remove(host, f"{prefix}/functions")
    return [layers, beside, kaniko, buildah]


async def _remove(host: str, name: str) -> None:
    transport = Transport(host, insecure=True, auth=None, patience=10)
    try:
        repository = Repository(transport, name)
        for tag in await repository.tags():
            if digest := await repository.manifest_digest(tag):
                await repository.delete_manifest(digest)
    finally:
        await transport.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each row (5)")
    parser.add_argument("--results", type=Path, help="also keep the table in this file")
    options = parser.parse_args()
    where = machine.describe()
    namespace = f"bench-images-{secrets.token_hex(4)}"
    _run(["kubectl", "create", "namespace", namespace], b"")
    try:
        figures = asyncio.run(measure(options.rounds, namespace))
        print(f"{where}\n\n{text_table(figures)}")
        if options.results:
            keep(options.results, "Kubernetes: images", where, figures)
    finally:
        _run(["kubectl", "delete", "namespace", namespace, "--wait=false"], b"")


if __name__ == "__main__":
    main()
