"""A builder of the test's own: writes a source to a file, and fails where the source says so."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mayfly.v1 import build_pb2, build_pb2_grpc
from mayfly.v1.build_pb2 import Artefact, Build, BuildStep, Runtime
from mayfly.v1.error_pb2 import ErrorReason
from mayfly.v1.source_pb2 import Failure, Stage

from libs.rpc.errors import MayflyError
from libs.rpc.server import Server


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC))
    return stamp


class TinyBuilder(build_pb2_grpc.BuildServiceServicer):
    """Sources with "BUILD FAILS" fail, those with "SLOW" wait for `go_on` and log lines."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.builds: dict[str, Build] = {}
        self.held: dict[tuple[str, str], datetime] = {}
        self.released: list[tuple[str, str]] = []
        self.lost: set[str] = set()
        self.looks = 0
        self.blind = False
        # Where images are pushed to; empty: artefacts are directories only.
        self.registry = ""
        self.go_on = asyncio.Event()
        self.settings = build_pb2.ScriptSettings()
        self._server: Server | None = None

    async def start(self, address: str) -> None:
        """Serve at `address`."""
        self._server = Server(address, ["mayfly.v1.BuildService"])
        self._server.add(build_pb2_grpc.add_BuildServiceServicer_to_server, self)
        await self._server.start()

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def ListRuntimes(self, request, context):
        runtimes = [
            Runtime(name="python", available=True, sources=["handler", "script", "archive"]),
            Runtime(name="go", available=False, unavailable_reason="no go on PATH"),
        ]
        return build_pb2.ListRuntimesResponse(runtimes=runtimes)

    async def CreateBuild(self, request, context):
        digest = hashlib.sha256(request.source.SerializeToString()).hexdigest()[:12]
        name = f"builds/{digest}"
        until = request.expire_time.ToDatetime(tzinfo=UTC)
        self.held[name, request.function_uid] = until
        if name not in self.builds:
            self.builds[name] = self._make(name, digest, request.source)
        if self.builds[name].state != Build.STATE_FAILED:
            self.lost.discard(name)
        return build_pb2.CreateBuildResponse(build=self.builds[name])

    def fail_again(self, name: str) -> None:
        """Have a build fail whenever it is made from now on."""
        failure = Failure(stage=Stage.STAGE_BUILD, reason="INDEX_UNREACHABLE", message="away")
        self.builds[name] = Build(name=name, state=Build.STATE_FAILED, failure=failure)

    def _make(self, name, digest, source) -> Build:
        content = source.WhichOneof("content")
        text = getattr(source, content)
        text = text.decode() if isinstance(text, bytes) else text
        step = BuildStep(stage=Stage.STAGE_CHECK, start_time=now(), duration=Duration(nanos=1000))
        build = Build(name=name, create_time=now(), steps=[step])
        if "BUILD FAILS" in text:
            build.state = Build.STATE_FAILED
            build.failure.CopyFrom(
                Failure(
                    stage=Stage.STAGE_BUILD,
                    reason="SOURCE_SYNTAX",
                    message="'(' was never closed",
                    fix="close the parenthesis",
                    line=3,
                    column=12,
                )
            )
            return build
        directory = self.directory / digest
        directory.mkdir(parents=True, exist_ok=True)
        entry = "script.py" if content == "script" else "handler.py"
        (directory / entry).write_text(text)
        (directory / "deploy_fails.json").unlink(missing_ok=True)
        if "DEPLOY FAILS" in text:
            (directory / "deploy_fails.json").write_text(
                '{"reason": "SCRIPT_EXITED", "message": "exit code 1", "fix": "listen",'
                ' "log_tail": ["boom"], "exit_code": 1}'
            )
        kind = Artefact.KIND_SCRIPT if content == "script" else Artefact.KIND_PYTHON_HANDLER
        build.artefact.CopyFrom(
            Artefact(
                kind=kind,
                directory=str(directory),
                entry=entry,
                interpreter="/usr/bin/python3",
                settings=self.settings,
                image=f"{self.registry}@sha256:{digest}" if self.registry else "",
            )
        )
        build.state = Build.STATE_RUNNING if "SLOW" in text else Build.STATE_SUCCEEDED
        return build

    async def WatchBuild(self, request, context) -> AsyncIterator[build_pb2.WatchBuildResponse]:
        build = self.builds[request.name]
        sequence = 0
        for step in build.steps:
            sequence += 1
            yield build_pb2.WatchBuildResponse(sequence=sequence, time=now(), step=step)
        for text in ("resolving", "installing"):
            sequence += 1
            yield build_pb2.WatchBuildResponse(sequence=sequence, time=now(), log=text)
        await self.go_on.wait()
        build.state = Build.STATE_SUCCEEDED
        yield build_pb2.WatchBuildResponse(sequence=sequence + 1, time=now(), ended=build)

    async def HoldBuild(self, request, context):
        if request.name not in self.builds:
            raise MayflyError(ErrorReason.ERROR_REASON_NOT_FOUND, "no such build")
        until = request.expire_time.ToDatetime(tzinfo=UTC)
        self.held[request.name, request.function_uid] = until
        return build_pb2.HoldBuildResponse()

    async def FindLostImages(self, request, context):
        self.looks += 1
        if self.blind:
            raise MayflyError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the registry is away")
        lost = [name for name in request.names if name in self.lost]
        return build_pb2.FindLostImagesResponse(lost=lost)

    async def ReleaseBuild(self, request, context):
        self.released.append((request.name, request.function_uid))
        return build_pb2.ReleaseBuildResponse(removed=["artefact x"], kept=["environment y shared"])
