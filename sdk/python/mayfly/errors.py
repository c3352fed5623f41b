"""What can go wrong, as exceptions. Each has a `reason`, a `message` and, mostly, a `fix`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mayfly.resources import Failure, Function


class MayflyError(Exception):
    """Something went wrong. `reason` is the name of an `ErrorReason`, for example "NOT_FOUND"."""

    # The name of the gRPC status (google.rpc.Code) that this class stands for.
    status = "UNKNOWN"

    def __init__(self, message: str, *, reason: str = "", fix: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.status
        self.fix = fix
        # The field of the request that is to blame; empty when none is.
        self.field = field

    def to_json(self) -> dict[str, Any]:
        """Return the error in the shape of the platform's own JSON errors."""
        error: dict[str, Any] = {
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "fix": self.fix,
        }
        if self.field:
            error["field"] = self.field
        return {"error": error}


class InvalidRequest(MayflyError):
    """A field of the request is wrong; `field` names it."""

    status = "INVALID_ARGUMENT"


class NotFound(MayflyError):
    """There is no function, build or receipt of this name."""

    status = "NOT_FOUND"


class AlreadyExists(MayflyError):
    """The function's id is taken."""

    status = "ALREADY_EXISTS"


class FunctionEnded(MayflyError):
    """The function's lease has ended: it cannot be renewed or changed."""

    status = "FAILED_PRECONDITION"


class QuotaExceeded(MayflyError):
    """A limit of this Mayfly is reached."""

    status = "RESOURCE_EXHAUSTED"


class PermissionDenied(MayflyError):
    """The method is not for callers from outside."""

    status = "PERMISSION_DENIED"


class Unavailable(MayflyError):
    """Mayfly cannot be reached, or a part of it is starting; trying again is safe."""

    status = "UNAVAILABLE"


class InternalError(MayflyError):
    """A fault of Mayfly itself."""

    status = "INTERNAL"


class FunctionFailed(MayflyError):
    """The function could not be built or deployed; `failure` says all that is known."""

    status = "FAILED_PRECONDITION"

    def __init__(self, function: str, failure: Failure) -> None:
        super().__init__(failure.message, reason=failure.reason, fix=failure.fix)
        # The function's id.
        self.function = function
        self.failure = failure
        self.stage = failure.stage
        self.line = failure.line
        self.column = failure.column
        self.source_line = failure.source_line
        self.log_tail = failure.log_tail
        self.exit_code = failure.exit_code

    def to_json(self) -> dict[str, Any]:
        """Return the error with the whole failure."""
        error = super().to_json()
        error["error"] |= {"function": self.function, "stage": self.stage}
        error["error"]["failure"] = self.failure.to_json()
        return error


def settled(function: Function) -> Function:
    """Return a function that answers; raise `FunctionFailed`, or `FunctionEnded` before it did."""
    if function.failure is not None:
        raise FunctionFailed(function.id, function.failure)
    if function.ended:
        raise FunctionEnded(
            f"the lease of {function.id} ended before it was ready",
            reason="FUNCTION_ENDED",
            fix="deploy it again with a longer ttl",
        )
    return function


_BY_REASON: dict[str, type[MayflyError]] = {
    "FUNCTION_ENDED": FunctionEnded,
    "FUNCTION_EXISTS": AlreadyExists,
    "NOT_FOUND": NotFound,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "UNAVAILABLE": Unavailable,
    "INTERNAL": InternalError,
}
_BY_STATUS: dict[str, type[MayflyError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": FunctionEnded,
    "RESOURCE_EXHAUSTED": QuotaExceeded,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": PermissionDenied,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
    "INTERNAL": InternalError,
}


def error_class(status: str, reason: str) -> type[MayflyError]:
    """Return the class for a gRPC status' name and a reason, which says more and comes first."""
    return _BY_REASON.get(reason) or _BY_STATUS.get(status, MayflyError)
