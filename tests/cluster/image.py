"""The image of the services, built in the cluster from this checkout's Dockerfile.

`python -m tests.cluster.image` prints its reference, building only what the registry has not.
`--quick` builds no image: it puts the checkout's code as one layer over the last image that has
the same requirements, in a few seconds.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 900
# What the Dockerfile copies; .dockerignore lets the same through.
REQUIREMENTS = ("Dockerfile", "requirements-cluster.txt", "requirements-demo.txt", "wheels")
CODE = (
    "hatch_build.py",
    "libs",
    "proto",
    "pyproject.toml",
    "README.md",
    "runtimes",
    "sdk",
    "services",
)
BUILD_TOOLS = ("requirements-dev.txt",)
PACKAGES = {
    "libs": "libs",
    "runtimes": "runtimes",
    "services": "services",
    "sdk/python/mayfly": "mayfly",
}
GENERATED = "sdk/python/mayfly/v1"


class ImageError(Exception):
    """The image could not be built; the message has the end of the builder's output."""


def files(names: tuple[str, ...], *, generated: bool = False) -> Iterator[Path]:
    """Yield the files below `names`, sorted, without what Python compiled."""
    for name in names:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            relative = path.relative_to(ROOT).as_posix()
            made = relative.startswith(GENERATED)
            if path.is_file() and "__pycache__" not in path.parts and (generated or not made):
                yield path


def digest(*parts: object) -> str:
    """Return twelve hex digits that change with the parts; a path counts with its content."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(repr(part.relative_to(ROOT) if isinstance(part, Path) else part).encode())
        sha.update(part.read_bytes() if isinstance(part, Path) else b"")
    return sha.hexdigest()[:12]


def build(target: str = "mayfly") -> str:
    """Return the reference of the image of this checkout; built by Kaniko where it is new.

    Raises `ImageError`.
    """
    base = os.environ["MAYFLY_TEST_PYTHON_IMAGE"]
    inputs = [*files(REQUIREMENTS), *files(BUILD_TOOLS), *files(CODE)]
    repository = f"{os.environ['MAYFLY_TEST_REGISTRY']}/mayfly"
    reference = f"{repository}:{target}-{digest(base, target, *inputs)}"
    with _alone():
        if not _exists(reference):
            _kaniko(inputs, target, base, [reference, _stem(repository, target, base)])
    return reference


def quick(target: str = "mayfly") -> str:
    """Return the reference of an image whose /app is this checkout's code as it is now."""
    base = os.environ["MAYFLY_TEST_PYTHON_IMAGE"]
    repository = f"{os.environ['MAYFLY_TEST_REGISTRY']}/mayfly"
    stem = _stem(repository, target, base)
    if not _exists(stem):
        return build(target)
    code = list(files(tuple(PACKAGES), generated=True))
    reference = f"{repository}:{target}-quick-{digest(stem, *code)}"
    if not _exists(reference):
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as layer:
            layer.write(_layer(code))
            layer.flush()
            _run("crane", "append", "--insecure", "-b", stem, "-f", layer.name, "-t", reference)
    return reference


@contextmanager
def _alone() -> Iterator[None]:
    """Whoever wants the same image at the same time waits, and then finds it."""
    with (Path(tempfile.gettempdir()) / "mayfly-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stem(repository: str, target: str, base: str) -> str:
    """The last image that was built with these requirements, whatever its code."""
    return f"{repository}:{target}-requirements-{digest(base, target, *files(REQUIREMENTS))}"


def _layer(code: list[Path]) -> bytes:
    """Return a layer that replaces /app: the code, and what an installed package has besides."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    extra = {
        # Hides what lower layers have in the directory, so that removed modules are gone.
        # https://github.com/opencontainers/image-spec/blob/main/layer.md#opaque-whiteout
        "app/.wh..wh..opq": b"",
        f"app/mayfly-{version}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: mayfly\nVersion: {version}\n".encode()
        ),
        "app/bin/mayfly": (
            b"#!/opt/mayfly/bin/python\n"
            b"from mayfly.cli.main import main\n"
            b"raise SystemExit(main())\n"
        ),
    }
    placed = {
        f"app/{package}/{path.relative_to(ROOT / source).as_posix()}": path.read_bytes()
        for source, package in PACKAGES.items()
        for path in code
        if path.is_relative_to(ROOT / source)
    }
    return _archive(extra | placed)


def _archive(contents: dict[str, bytes]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755 if "/bin/" in name else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), 1, mtime=0)


def _kaniko(inputs: list[Path], target: str, base: str, references: list[str]) -> None:
    namespace = f"mayfly-image-{secrets.token_hex(4)}"
    context = _archive({p.relative_to(ROOT).as_posix(): p.read_bytes() for p in inputs})
    client: Any = boto3.client(
        "s3",
        endpoint_url=os.environ["MAYFLY_TEST_S3_ENDPOINT"],
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=namespace)
    try:
        client.put_object(Bucket=namespace, Key="context.tar.gz", Body=context)
        _kubectl("create", "namespace", namespace)
        _kubectl(
            "apply", "-n", namespace, "-f", "-", stdin=_pod(namespace, target, base, references)
        )
        _wait(namespace)
    finally:
        _kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
        client.delete_object(Bucket=namespace, Key="context.tar.gz")
        client.delete_bucket(Bucket=namespace)


def _pod(bucket: str, target: str, base: str, references: list[str]) -> str:
    registry = os.environ["MAYFLY_TEST_REGISTRY"]
    environment = {
        "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "AWS_REGION": os.environ["AWS_REGION"],
        "S3_ENDPOINT": os.environ["MAYFLY_TEST_S3_ENDPOINT"],
        "S3_FORCE_PATH_STYLE": "true",
    }
    index = index_variables()
    arguments = [
        f"--context=s3://{bucket}/context.tar.gz",
        f"--target={target}",
        *(f"--destination={reference}" for reference in references),
        f"--build-arg=BASE_IMAGE={base}",
        *(f"--build-arg={name}={value}" for name, value in index.items()),
        "--insecure",
        "--insecure-pull",
        "--cache=true",
        f"--cache-repo={registry}/mayfly/cache",
        "--cache-copy-layers",
        "--skip-unused-stages",
        "--snapshot-mode=redo",
        "--compressed-caching=false",
    ]
    container = {
        "name": "kaniko",
        "image": os.environ["MAYFLY_TEST_KANIKO_IMAGE"],
        "args": arguments,
        "env": [{"name": name, "value": value} for name, value in (environment | index).items()],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "image"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "activeDeadlineSeconds": BUILD_SECONDS,
            "containers": [container],
        },
    }
    return json.dumps(pod)


def index_variables() -> dict[str, str]:
    """Return how pods reach the package index: the Secret of MAYFLY_TEST_INDEX_SECRET.

    Shape NAMESPACE/NAME; default default/mayfly-test-index. Without it, nothing.
    """
    namespace, _, name = os.environ.get(
        "MAYFLY_TEST_INDEX_SECRET", "default/mayfly-test-index"
    ).partition("/")
    found = _kubectl("get", "secret", "-n", namespace, name, "--ignore-not-found", "-o", "json")
    data: dict[str, str] = json.loads(found).get("data") or {} if found.strip() else {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


@cache
def python_version(reference: str) -> str:
    """Return which Python an image has, such as "3.13": by the name of its program.

    Raises `ImageError` when there is none.
    """
    program = re.compile(r"(?:.*/)?bin/python(3\.\d+)")
    export = subprocess.Popen(
        ["crane", "export", "--insecure", reference, "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with export:
        try:
            with tarfile.open(fileobj=export.stdout, mode="r|") as tar:
                for entry in tar:
                    if found := program.fullmatch(entry.name):
                        return found[1]
        finally:
            export.kill()
    raise ImageError(f"{reference} has no bin/python3.x")


def _wait(namespace: str) -> None:
    done = "jsonpath={.status.phase}"
    watch = subprocess.Popen(
        ["kubectl", "get", "pod", "image", "-n", namespace, "-w", "-o", f"{done}{{'\\n'}}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    phase = ""
    try:
        # The pod's own deadline bounds this.
        for line in watch.stdout or ():
            phase = line.strip()
            if phase in ("Succeeded", "Failed"):
                break
    finally:
        watch.kill()
        watch.communicate()
    if phase != "Succeeded":
        log = _kubectl("logs", "-n", namespace, "image", "--tail=60", check=False)
        raise ImageError(f"the image's build ended as {phase or 'unknown'}:\n{log}")


def _exists(reference: str) -> bool:
    done = subprocess.run(
        ["crane", "manifest", "--insecure", reference], capture_output=True, check=False
    )
    return done.returncode == 0


def _kubectl(*arguments: str, stdin: str = "", check: bool = True) -> str:
    return _run("kubectl", *arguments, stdin=stdin, check=check)


def _run(*command: str, stdin: str = "", check: bool = True) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ImageError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main() -> None:
    """Print the reference of the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the code, over the last image")
    parser.add_argument("--target", default="mayfly", choices=("mayfly", "demo"))
    chosen = parser.parse_args()
    try:
        print(quick(chosen.target) if chosen.quick else build(chosen.target))
    except ImageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
