"""What coordctl ends with: one line on standard error, `coordctl: REASON: message`, and one exit code.

Errors of others are mapped here and nowhere else: `from_rpc` for calls, `from_exception` for what
`coordinator.config`, `coordinator.offline` and `wal` raise.
"""

from __future__ import annotations

import re
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class ExitCode(IntEnum):
    """The table of exit codes; from 65 on they are those of sysexits.h."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    IN_DOUBT = 4
    BAD_INPUT = 65
    UNAVAILABLE = 69
    INTERNAL = 70
    LOG_IO = 74
    TRY_AGAIN = 75
    CONFIGURATION = 78
    INTERRUPTED = 130
    BROKEN_PIPE = 141


EXIT_CODES: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "refused by the coordinator, or not confirmed; nothing was changed",
    ExitCode.USAGE: "wrong options or arguments",
    ExitCode.NOT_FOUND: "no such transaction or participant",
    ExitCode.IN_DOUBT: "something needs attention (with --check; from recover: a branch is on hold)",
    ExitCode.BAD_INPUT: "a transaction id or other input that cannot be read",
    ExitCode.UNAVAILABLE: "the coordinator or a participant cannot be reached, or is not ready",
    ExitCode.INTERNAL: "internal error or outcome not known: look again before you repeat it",
    ExitCode.LOG_IO: "the log cannot be written or read, or has no room",
    ExitCode.TRY_AGAIN: "locked or overloaded: try again",
    ExitCode.CONFIGURATION: "the configuration cannot be used, or the log is corrupt",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
}

# Reasons whose exit code does not follow from the gRPC status that carries them.
_BY_REASON: dict[str, ExitCode] = {
    "LOG_FULL": ExitCode.LOG_IO,
    "LOG_FAILED": ExitCode.LOG_IO,
}

_BY_STATUS: dict[str, ExitCode] = {
    "INVALID_ARGUMENT": ExitCode.BAD_INPUT,
    "OUT_OF_RANGE": ExitCode.BAD_INPUT,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "FAILED_PRECONDITION": ExitCode.REFUSED,
    "ALREADY_EXISTS": ExitCode.REFUSED,
    "ABORTED": ExitCode.REFUSED,
    "PERMISSION_DENIED": ExitCode.REFUSED,
    "UNAUTHENTICATED": ExitCode.REFUSED,
    "UNIMPLEMENTED": ExitCode.REFUSED,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": ExitCode.TRY_AGAIN,
}


# Where a sound log cannot be used all the same: module, class, reason.
_UNUSABLE_LOG = (
    ("coordinator.journal", "JournalError", "LOG_UNUSABLE"),
    ("coordinator.core.replay", "LogContradiction", "LOG_CORRUPT"),
    ("coordinator.codec", "UnknownRecord", "LOG_TOO_NEW"),
)


# Why outcomes could not be derived (coordinator.derive.DeriveRefused).
_BY_DERIVATION: dict[str, ExitCode] = {
    "UNKNOWN_TRANSACTION": ExitCode.NOT_FOUND,
    "PARTICIPANT_UNAVAILABLE": ExitCode.UNAVAILABLE,
    "LOG_FAILED": ExitCode.LOG_IO,
    "COORDINATOR_ATTACHED": ExitCode.TRY_AGAIN,
    "TAKEOVER_FAILED": ExitCode.TRY_AGAIN,
    "EVIDENCE_CHANGED": ExitCode.TRY_AGAIN,
    "FOREIGN_LOG": ExitCode.CONFIGURATION,
    "NUMBERS_CONTRADICT": ExitCode.CONFIGURATION,
}


class CtlError(Exception):
    """An error that ends a command.

    Arguments:
        reason: a stable code in capitals, those of `dtp.Reason` where one fits.
        message: one line for people that says what to do.
        code: the exit code.
    """

    def __init__(self, reason: str, message: str, code: ExitCode | int) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.code = int(code)


def from_rpc(error: grpc.RpcError, address: str, offline: str) -> CtlError:
    """What a failed call means.

    Arguments:
        error: as the stub raised it.
        address: where the call went.
        offline: the command that works without the coordinator.
    """
    status = error.code().name
    details = error.details() or ""
    reason = _error_info_reason(error)
    if reason:
        code = _BY_REASON.get(reason, _BY_STATUS.get(status, ExitCode.INTERNAL))
        return CtlError(reason, details, code)
    if status == "UNAVAILABLE":
        return CtlError(
            "COORDINATOR_UNAVAILABLE",
            f"no coordinator answers at {address} ({_short(details)}); "
            f"if it is stopped, read its log with `{offline}`",
            ExitCode.UNAVAILABLE,
        )
    if status == "DEADLINE_EXCEEDED":
        return CtlError(
            "TIMEOUT",
            f"the coordinator at {address} did not answer in time and may still carry the request out; look "
            "with `coordctl list`, give more time with --timeout; if it is stopped, read its log with "
            f"`{offline}`",
            ExitCode.UNAVAILABLE,
        )
    return CtlError(status, details or "the call failed", _BY_STATUS.get(status, ExitCode.INTERNAL))


def _error_info_reason(error: grpc.RpcError) -> str:
    """The reason in the call's google.rpc.ErrorInfo, or ""."""
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(error)  # a failed call is its own error
    except (
        ValueError,
        DecodeError,
    ):  # a status that contradicts the call, or is not one: the call's own holds
        return ""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return str(info.reason)
    return ""


def _short(details: str) -> str:
    """gRPC's account of a failed connection without its prefixes."""
    for known in ("Connection refused", "Connection reset", "Network is unreachable", "No route to host"):
        if known in details:
            return known
    return " ".join(details.split())[:200] or "no reason given"


def from_exception(error: Exception) -> CtlError | None:
    """What an error of the configuration, the log or the vocabulary means; None for an unexpected one.

    It looks only at classes whose modules somebody has loaded, so that it loads none itself.
    """
    if _is(error, "shell.config", "ConfigError"):
        return CtlError("CONFIGURATION", str(error), ExitCode.CONFIGURATION)
    for module, cls, reason in _UNUSABLE_LOG:
        if _is(error, module, cls):
            return CtlError(reason, str(error), ExitCode.CONFIGURATION)
    if _is(error, "wal.errors", "LogError"):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()
        return CtlError(name, str(error), getattr(error, "exit_status", ExitCode.INTERNAL))
    if _is(error, "dtp.errors", "XacoordError"):
        reason, status = str(getattr(error, "reason", "")), str(getattr(error, "status", ""))
        code = _BY_REASON.get(reason, _BY_STATUS.get(status, ExitCode.INTERNAL))
        return CtlError(reason, str(getattr(error, "message", error)), code)
    if _is(error, "coordinator.derive", "DeriveRefused"):
        reason = str(getattr(error, "reason", ""))
        return CtlError(reason, str(error), _BY_DERIVATION.get(reason, ExitCode.REFUSED))
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return CtlError("IO_ERROR", f"{place}{error.strerror or error}", ExitCode.LOG_IO)
    return None


def _is(error: Exception, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))
