"""The peers: buildah, a registry and runc, running the same handler in the usual way.

The base image is made from the interpreter of this machine before anything is measured, so that
no peer downloads while it is timed. Everything lives in one directory that is removed afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from bench.http import BenchFailed, Json, first_200
from tests.conformance.standalone import free_port

PACKAGES = {"buildah": "buildah", "runc": "runc", "docker-registry": "docker-registry"}

SERVE = '''"""The smallest server around a handler."""
import http.server, json, sys, types

sys.path.insert(0, "/app")
from handler import handler

context = types.SimpleNamespace(function_id="bench", request_id="none", contract_version="1")


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(handler({"query": {}, "path": self.path}, context)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
'''


def install() -> dict[str, str]:
    """Install what is absent and can be had; returns what is still missing, with the reason."""
    absent = {tool: package for tool, package in PACKAGES.items() if not shutil.which(tool)}
    if not absent:
        return {} if os.geteuid() == 0 else dict.fromkeys(PACKAGES, "needs root to mount and run")
    if os.geteuid() != 0:
        return dict.fromkeys(absent, "not on PATH, and only root may install it")
    apt = shutil.which("apt-get")
    if apt is None:
        return dict.fromkeys(absent, "not on PATH, and there is no apt-get")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        [apt, "update", "-qq"],
        [apt, "install", "-y", "-qq", "--no-install-recommends", *absent.values()],
    ):
        subprocess.run(command, env=quiet, stdout=sys.stderr, check=False)
    return {t: "could not be installed with apt-get" for t in absent if not shutil.which(t)}


class Containers:
    """buildah, a registry of its own and runc, on a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._policy = directory / "policy.json"
        self._registry_port = free_port()
        self._registry: subprocess.Popen[bytes] | None = None
        self._env = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }
        self._count = 0
        self._spec: Json = {}

    def start(self) -> None:
        """Start the registry and make the base image."""
        top = self._directory
        top.mkdir(parents=True)
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (top / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{top}/graph"\nrunroot = "{top}/run"\n'
        )
        (top / "registry.yml").write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {top}/registry}}}}\n"
            f"http: {{addr: '127.0.0.1:{self._registry_port}'}}\n"
        )
        with (top / "registry.log").open("wb") as log:
            self._registry = subprocess.Popen(
                ["docker-registry", "serve", str(top / "registry.yml")], stdout=log, stderr=log
            )
        first_200("127.0.0.1", self._registry_port, "/v2/", 15)
        self._spec = default_spec(top)
        root = top / "root"
        copy_interpreter(root)
        (root / "app").mkdir()
        (root / "app" / "serve.py").write_text(SERVE)
        container = self._buildah("from", "scratch")
        self._buildah("add", "-q", container, str(root), "/")
        self._commit(container, "base")
        self._push("base")

    def stop(self) -> None:
        """End everything and remove the directory."""
        if self._directory.exists():
            self._buildah("rm", "--all", check=False)
            for mount in _mounts_below(self._directory):
                subprocess.run(["umount", "-l", mount], check=False)
        if self._registry is not None:
            self._registry.terminate()
            self._registry.wait(10)
        shutil.rmtree(self._directory, ignore_errors=True)

    def submit(self, handler: str) -> tuple[float, dict[str, float]]:
        """From a handler's text to its first 200: image, push, `runc run`. Milliseconds."""
        self._count += 1
        source = self._directory / "handler.py"
        port = free_port()
        stages: dict[str, float] = {}
        began = last = time.perf_counter()

        def stage(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            stages[name] = (now - last) * 1000
            last = now

        source.write_text(handler)
        container = self._buildah("from", "--pull-never", *self._signed(), "localhost/base")
        self._buildah("copy", "-q", container, str(source), "/app/handler.py")
        image = f"function{self._count}"
        self._commit(container, image)
        stage("build")
        self._push(image)
        stage("push")
        root = self._buildah("mount", container)
        with self._run(root, port) as _:
            stage("run")
            total = (last - began) * 1000
        self._buildah("rm", container)
        self._buildah("rmi", f"localhost/{image}")
        return total, stages

    def prepare(self, handler: str) -> str:
        """Return a mounted root file system with the handler, for `cold_start`."""
        source = self._directory / "handler.py"
        source.write_text(handler)
        container = self._buildah("from", "--pull-never", *self._signed(), "localhost/base")
        self._buildah("copy", "-q", container, str(source), "/app/handler.py")
        return self._buildah("mount", container)

    def cold_start(self, root: str) -> float:
        """From `runc run` to the first 200, in milliseconds."""
        port = free_port()
        began = time.perf_counter()
        with self._run(root, port):
            return (time.perf_counter() - began) * 1000

    def _run(self, root: str, port: int) -> _Running:
        self._count += 1
        bundle = self._directory / f"bundle{self._count}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(runtime_spec(self._spec, root, port)))
        return _Running(self._directory / "runc", bundle, f"bench{self._count}", port)

    def _signed(self) -> list[str]:
        return ["--signature-policy", str(self._policy)]

    def _commit(self, container: str, image: str) -> None:
        self._buildah("commit", "-q", *self._signed(), container, image)

    def _push(self, image: str) -> None:
        target = f"docker://127.0.0.1:{self._registry_port}/{image}:1"
        self._buildah("push", "-q", *self._signed(), "--tls-verify=false", image, target)

    def _buildah(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["buildah", *arguments], env=self._env, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise BenchFailed(f"buildah {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()


class _Running:
    """A container under runc, until the end of the `with` block."""

    def __init__(self, state: Path, bundle: Path, name: str, port: int) -> None:
        self._state, self._bundle, self._name, self._port = state, bundle, name, port

    def __enter__(self) -> None:
        with (self._bundle / "log").open("wb") as log:
            command = self._command("run", "--bundle", str(self._bundle), self._name)
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            first_200("127.0.0.1", self._port, "/", 20)
        except BenchFailed as error:
            self.__exit__()
            log_text = (self._bundle / "log").read_text(errors="replace")
            raise BenchFailed(f"runc: {log_text[-1000:]}") from error

    def __exit__(self, *_: object) -> None:
        subprocess.run(self._command("kill", self._name, "KILL"), capture_output=True, check=False)
        self._process.wait(10)
        subprocess.run(
            self._command("delete", "--force", self._name), capture_output=True, check=False
        )

    def _command(self, verb: str, *arguments: str) -> list[str]:
        return ["runc", "--root", str(self._state), verb, *arguments]


def default_spec(place: Path) -> Json:
    """Return the configuration that `runc spec` writes."""
    subprocess.run(["runc", "spec"], cwd=place, check=True)
    return json.loads((place / "config.json").read_text())


def runtime_spec(default: Json, root: str, port: int) -> Json:
    """Return runc's default configuration for the server, with the host's network.

    https://github.com/opencontainers/runtime-spec/blob/main/config.md
    """
    process, linux = default["process"], default["linux"]
    return default | {
        "root": {"path": root, "readonly": True},
        "process": process
        | {
            "terminal": False,
            "args": ["/usr/bin/python3", "/app/serve.py", str(port)],
            "env": ["PYTHONHOME=/usr", "PYTHONDONTWRITEBYTECODE=1", "LD_LIBRARY_PATH=/usr/lib"],
        },
        "linux": linux | {"namespaces": [n for n in linux["namespaces"] if n["type"] != "network"]},
    }


def copy_interpreter(root: Path) -> None:
    """Copy this machine's Python, its library and the shared objects it needs to `root`."""
    for folder in ("usr/bin", "usr/lib", "tmp", "proc", "dev", "sys", "etc"):
        (root / folder).mkdir(parents=True)
    executable = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_paths()["stdlib"])
    target = root / "usr" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(executable, root / "usr" / "bin" / "python3")
    unneeded = shutil.ignore_patterns(
        "test", "tests", "site-packages", "dist-packages", "idlelib", "tkinter", "config-*"
    )
    shutil.copytree(library, target, ignore=unneeded, symlinks=False)
    for needed in shared_objects([executable, *target.glob("lib-dynload/*.so")]):
        # The loader's own path is part of the executable; the others are found below /usr/lib.
        place = root / "usr" / "lib" / needed.name
        if needed.name.startswith("ld-"):
            place = root / needed.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.realpath(needed), place)


def shared_objects(binaries: list[Path]) -> set[Path]:
    """Return the shared objects that `ldd` finds for some binaries."""
    found: set[Path] = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
        words = (word for line in listed.stdout.splitlines() for word in line.split())
        found |= {Path(word) for word in words if word.startswith("/")}
    return {path for path in found if path.exists()}


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1] for line in lines]
    return sorted((p for p in points if p.startswith(f"{directory}/")), reverse=True)
