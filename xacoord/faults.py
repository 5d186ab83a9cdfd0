"""Fault: a gRPC call that failed, decoded once, at the edge. Pure; imports no grpc.

Our servers add a google.rpc.ErrorInfo (domain "xacoord") to their errors. A failure without
one comes from the transport: the request may or may not have been carried out, so it is not
definite. The exceptions are statuses that are given before any handler runs, and a request that
never left this process because no connection could be made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dtp.errors import INDEFINITE, RETRYABLE, Reason

DOMAIN = "xacoord"
STATUS_KEY = "grpc-status-details-bin"

# Given before a handler runs: by interceptors, or because the server has no such method.
_BEFORE_THE_HANDLER = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
# gRPC's words for a call that failed because no connection could be made. Where a future version
# changes them the fault is merely not definite any more; a test pins them.
_NEVER_SENT = "failed to connect to all addresses"
_TRY_LATER = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed call.

    Attributes:
        status: name of the gRPC status code.
        reason: the server's stable code; "" where the transport failed.
        message: one line for people.
        definite: what was asked certainly did not happen.
        retryable: the same request may succeed later.
        gtrid: the transaction it concerns, or "".
        statement: index of the statement, from 0, or None.
        errno: the MySQL server's error number, or 0.
    """

    status: str
    reason: str
    message: str
    definite: bool
    retryable: bool
    gtrid: str = ""
    statement: int | None = None
    errno: int = 0

    @property
    def transport(self) -> bool:
        """True where the failure does not come from one of our servers."""
        return not self.reason


def decode_fault(error: Any) -> Fault:
    """The fault behind a grpc.RpcError of a finished call (or anything with its methods)."""
    return make_fault(error.code().name, error.details() or "", error.trailing_metadata() or ())


def decode_status(data: bytes) -> Fault:
    """The fault behind a google.rpc.Status, serialised, as a stream's answer carries it."""
    from google.protobuf.message import DecodeError
    from google.rpc.code_pb2 import Code
    from google.rpc.status_pb2 import Status

    try:
        status = Status.FromString(data)
    except DecodeError:
        return make_fault("UNKNOWN", "an error that cannot be read", ())
    name = Code.Name(status.code) if status.code in Code.values() else "UNKNOWN"
    return make_fault(name, status.message, ((STATUS_KEY, data),))


def make_fault(status: str, details: str, trailers: Iterable[tuple[str, str | bytes]]) -> Fault:
    """The fault behind a status name, its text and the trailing metadata."""
    # Imported here: most processes never see an error.
    from google.rpc.error_details_pb2 import ErrorInfo

    info = _error_info(trailers, ErrorInfo)
    if info is None:
        never_sent = status == "UNAVAILABLE" and details.startswith(_NEVER_SENT)
        return Fault(
            status=status,
            reason="",
            message=f"{status}: {details}",
            definite=never_sent or status in _BEFORE_THE_HANDLER,
            retryable=status in _TRY_LATER,
        )
    known = info.reason in Reason.__members__
    metadata = info.metadata
    return Fault(
        status=status,
        reason=info.reason,
        message=details,
        definite=_flag(metadata.get("definite"), known and info.reason not in INDEFINITE),
        retryable=_flag(metadata.get("retryable"), info.reason in RETRYABLE),
        gtrid=metadata.get("gtrid", ""),
        statement=_number(metadata.get("statement")),
        errno=_number(metadata.get("errno")) or 0,
    )


def _error_info(trailers: Iterable[tuple[str, str | bytes]], error_info: Any) -> Any:
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    for key, value in trailers:
        if key != STATUS_KEY or not isinstance(value, bytes):
            continue
        try:
            details = Status.FromString(value).details
            for detail in details:
                info = error_info()
                if detail.Unpack(info) and info.domain == DOMAIN and info.reason:
                    return info
        except DecodeError:
            return None
    return None


def _flag(text: str | None, otherwise: bool) -> bool:
    return otherwise if text is None else text == "true"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
