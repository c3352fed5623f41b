"""Build hook: generates the contracts' Python modules and their descriptor set."""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
TARGET = ROOT / "sdk" / "python" / "mayfly" / "v1"


def generate(root: Path = ROOT, target: Path = TARGET) -> None:
    """Compile proto/mayfly/v1 into `target`: messages, stubs, types, and `descriptors.pb`.

    The descriptor set holds every import (google/rpc included: a transcoder needs the types of
    error details) and the comments, from which the OpenAPI document is made.
    """
    import google.api
    import grpc_tools
    from grpc_tools import protoc

    protos = sorted((root / "proto").glob("mayfly/v1/*.proto"))
    googleapis = next(Path(p).parents[1] for p in google.api.__path__)
    wellknown = Path(str(resources.files(grpc_tools) / "_proto"))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    out = target.parents[1]
    includes = [f"-I{root / 'proto'}", f"-I{googleapis}", f"-I{wellknown}"]
    python = [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    # protoc looks for the type generators on PATH; they live beside this interpreter.
    bin_dir = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={path}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (path := bin_dir / name).exists()
    ]
    run(protoc.main, ["protoc", *includes, *plugins, *python, *map(str, protos)])
    errors = [
        str(googleapis / "google" / "rpc" / f"{n}.proto") for n in ("status", "error_details")
    ]
    run(
        protoc.main,
        [
            "protoc",
            *includes,
            f"--descriptor_set_out={target / 'descriptors.pb'}",
            "--include_imports",
            "--include_source_info",
            *map(str, protos),
            *errors,
        ],
    )
    (target / "__init__.py").write_text('"""Generated from proto/mayfly/v1."""\n')
    (target / "py.typed").touch()


def run(protoc_main: Any, arguments: list[str]) -> None:
    """Run protoc; raise `RuntimeError` when it does not succeed."""
    if status := protoc_main(arguments):
        raise RuntimeError(f"protoc ended with {status}")


class ContractsHook(BuildHookInterface):  # pyright: ignore[reportMissingTypeArgument]
    """Generates before a wheel or an editable install is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the contracts."""
        generate()


if __name__ == "__main__":
    generate()
