"""Errors of the platform and their form on the wire.

A failed call carries `google.rpc.Status` (https://google.aip.dev/193) with an `ErrorInfo` of the
domain "mayfly" and, where one field is to blame, a `BadRequest`.
"""

from __future__ import annotations

from typing import cast

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode
from mayfly.v1.error_pb2 import ErrorReason

DOMAIN = "mayfly"
STATUS_TRAILER = "grpc-status-details-bin"
_PREFIX = "ERROR_REASON_"

_CODES: dict[int, StatusCode] = {
    ErrorReason.ERROR_REASON_FUNCTION_EXISTS: StatusCode.ALREADY_EXISTS,
    ErrorReason.ERROR_REASON_NOT_FOUND: StatusCode.NOT_FOUND,
    ErrorReason.ERROR_REASON_FUNCTION_ENDED: StatusCode.FAILED_PRECONDITION,
    ErrorReason.ERROR_REASON_UNAVAILABLE: StatusCode.UNAVAILABLE,
    ErrorReason.ERROR_REASON_INTERNAL: StatusCode.INTERNAL,
    ErrorReason.ERROR_REASON_QUOTA_EXCEEDED: StatusCode.RESOURCE_EXHAUSTED,
}


class MayflyError(Exception):
    """A failure that a caller can act upon.

    `reason` says what kind it is, `message` what happened, `fix` what to change, and `field` which
    field of the request is to blame. `code` overrides the status that follows from the reason.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        fix: str = "",
        field: str = "",
        code: StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fix = fix
        self.field = field
        self.code = code or _CODES.get(reason, StatusCode.INVALID_ARGUMENT)

    @property
    def reason_name(self) -> str:
        """The reason's name without its prefix, as on the wire."""
        return reason_name(self.reason)


def reason_name(reason: ErrorReason.ValueType) -> str:
    """Return the name of `reason` without its prefix. Example: "INVALID_TTL"."""
    return ErrorReason.Name(reason).removeprefix(_PREFIX)


def reason_value(name: str) -> ErrorReason.ValueType:
    """Return the reason of a name without prefix; UNSPECIFIED for one that is unknown."""
    full = _PREFIX + name
    if full in ErrorReason.keys():  # noqa: SIM118 - an enum wrapper, no dict
        return ErrorReason.Value(full)
    return ErrorReason.ERROR_REASON_UNSPECIFIED


def to_status(error: MayflyError) -> status_pb2.Status:
    """Return `error` as `google.rpc.Status`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN)
    if error.fix:
        info.metadata["fix"] = error.fix
    if error.field:
        info.metadata["field"] = error.field
    status = status_pb2.Status(code=_number(error.code), message=error.message)
    _pack(status, info)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        _pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> MayflyError:
    """Return what the other side said; a bare status becomes UNAVAILABLE or INTERNAL."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            return _from_status(status_pb2.Status.FromString(value), error.code())
    unreachable = error.code() in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
    reason = (
        ErrorReason.ERROR_REASON_UNAVAILABLE if unreachable else ErrorReason.ERROR_REASON_INTERNAL
    )
    return MayflyError(reason, error.details() or error.code().name, code=error.code())


def _from_status(status: status_pb2.Status, code: StatusCode) -> MayflyError:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    return MayflyError(
        reason_value(info.reason),
        status.message,
        fix=info.metadata.get("fix", ""),
        field=info.metadata.get("field", ""),
        code=code,
    )


def _number(code: StatusCode) -> int:
    return code_pb2.Code.Value(code.name if code is not StatusCode.CANCELLED else "CANCELLED")


def _pack(
    status: status_pb2.Status, detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest
) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    cast("list[any_pb2.Any]", status.details).append(packed)
