"""Why a build failed, as a value that is raised, kept and told."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from grpc import StatusCode
from mayfly.v1.source_pb2 import Failure, Stage

from libs.rpc.errors import MayflyError, reason_value

# Reasons that say nothing about the source: the next CreateBuild tries again.
_TRANSIENT = frozenset(
    {
        "BUILD_IMAGE_PULL_FAILED",
        "BUILD_INTERRUPTED",
        "BUILD_NOT_STARTED",
        "BUILD_OUT_OF_MEMORY",
        "BUILD_TIMEOUT",
        "CLUSTER_FORBIDDEN",
        "CLUSTER_QUOTA_EXCEEDED",
        "INDEX_UNREACHABLE",
        "INSTALL_FAILED",
        "INTERNAL",
        "PUSH_REFUSED",
        "REGISTRY_UNREACHABLE",
        "STORAGE_UNREACHABLE",
        "UNSCHEDULABLE",
    }
)
# Reasons that depend on what indexes and this machine offer, which changes now and then.
_OF_THE_WORLD = frozenset({"PACKAGE_NOT_FOUND", "REQUIREMENTS_CONFLICT", "PYTHON_UNSATISFIABLE"})
_WORLD_CHANGES_AFTER = timedelta(minutes=1)
_LONGEST_MESSAGE = 4000


@dataclass
class BuildFailed(Exception):
    """The build cannot succeed as it is.

    `reason` is the name of an `ErrorReason` without prefix, `message` what happened, `fix` what to
    change; `line` and `column` count from 1, 0 where there is none.
    """

    reason: str
    message: str
    fix: str
    line: int = 0
    column: int = 0
    source_line: str = ""
    exit_code: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def to_proto(self, stage: Stage.ValueType, log_tail: list[str]) -> Failure:
        """Return it as it is kept and sent."""
        failure = Failure(
            stage=stage,
            reason=self.reason,
            message=_storable(self.message)[:_LONGEST_MESSAGE],
            fix=_storable(self.fix),
            line=self.line,
            column=self.column,
            source_line=_storable(self.source_line)[:400],
            log_tail=log_tail,
        )
        if self.exit_code is not None:
            failure.exit_code = self.exit_code
        return failure


class ClaimLost(Exception):
    """Another worker does this build now, or nobody wants it any more."""


@contextmanager
def looking() -> Generator[None]:
    """Have a look that fails be UNAVAILABLE: what was not looked at is not known to be gone."""
    try:
        yield
    except BuildFailed as error:
        raise MayflyError(
            reason_value(error.reason),
            error.message,
            fix=error.fix,
            code=StatusCode.UNAVAILABLE,
        ) from error


def retry_after(reason: str) -> timedelta | None:
    """Return how long a failure of this reason is an answer to the same source; None: for good."""
    if reason in _TRANSIENT:
        return timedelta(0)
    return _WORLD_CHANGES_AFTER if reason in _OF_THE_WORLD else None


def _storable(text: str) -> str:
    # Lone surrogates (undecodable file names) cannot be put into a protobuf string.
    return text.encode(errors="replace").decode()
