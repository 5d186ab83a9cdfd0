"""Messages as JSON documents with stable keys, and the few phrases that people get instead.

Times are ISO-8601 in UTC, durations seconds, gtrids text; XIDs that are not ours are hexadecimal. What is
not known is null. Keys are only ever added (docs/coordctl.md lists them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper
    from google.protobuf.timestamp_pb2 import Timestamp

    from coordinator.v1 import admin_pb2, coordinator_pb2

Document = dict[str, Any]


def transaction(message: coordinator_pb2.Transaction) -> Document:
    """A transaction with its branches and its timeline."""
    from coordinator.v1 import coordinator_pb2 as pb

    return {
        "gtrid": message.gtrid,
        "state": _name(pb.State, message.state, "STATE_"),
        "outcome": _name(pb.Outcome, message.outcome, "OUTCOME_"),
        "begun_at": _time(message.begun_at) if message.HasField("begun_at") else None,
        "age_seconds": seconds(message.age) if message.HasField("age") else None,
        "in_doubt": message.in_doubt,
        "blocked": message.blocked,
        "recovered": message.recovered,
        "forgotten": message.forgotten,
        "rejection": _rejection(message.rejection) if message.HasField("rejection") else None,
        "branches": [
            {
                "participant": branch.participant,
                "number": branch.number,
                "state": _name(pb.BranchState, branch.state, "BRANCH_STATE_"),
                "outcome": _name(pb.Outcome, branch.outcome, "OUTCOME_"),
                "attempts": branch.attempts,
                "last_error": branch.last_error or None,
                "waits_for": [
                    {
                        "gtrid": blocker.gtrid or None,
                        "prepared": blocker.prepared,
                        "connection_id": blocker.connection_id or None,
                        "account": blocker.account or None,
                    }
                    for blocker in branch.waits_for
                ],
            }
            for branch in message.branches
        ],
        "timeline": [
            {"at": _time(event.at), "participant": event.participant or None, "what": event.what}
            for event in message.timeline
        ],
    }


def blocker_text(blocker: Document) -> str:
    """Whose lock a branch waits for, for people: it waits for ...; one of a branch's `waits_for`."""
    who = f" of {blocker['account']}" if blocker["account"] else ""
    session = f"connection {blocker['connection_id']}{who}" if blocker["connection_id"] else ""
    if blocker["gtrid"]:
        kind = "prepared branch " if blocker["prepared"] else ""
        return f"{kind}{blocker['gtrid']}" + (f" (through {session})" if session else "")
    return "a prepared branch of somebody else" if blocker["prepared"] else session or "somebody"


def _rejection(message: coordinator_pb2.Rejection) -> Document:
    return {
        "reason": message.reason,
        "message": message.message,
        "participant": message.participant or None,
        "retryable": message.retryable,
        "errno": message.errno or None,
        "statement": message.statement if message.HasField("statement") else None,
    }


def participant(message: admin_pb2.Participant) -> Document:
    """A participant as the coordinator sees it."""
    return {
        "participant": message.participant,
        "number": message.number,
        "address": message.address,
        "state": message.state,
        "last_error": message.last_error or None,
        "in_doubt": message.in_doubt,
        "orphans": message.orphans,
        "foreign": message.foreign,
        "blocked_sessions": message.blocked_sessions,
        "server": message.server or None,
        "witness": message.witness,
        "scanned_seconds_ago": None if message.scanned_seconds_ago < 0 else message.scanned_seconds_ago,
    }


def log_status(message: admin_pb2.LogStatusResponse) -> Document:
    """The log, and the coordinator that writes it."""
    return {
        "directory": message.directory,
        "identity": message.identity,
        "coordinator_id": message.coordinator_id,
        "epoch": message.epoch,
        "version": message.version,
        "ready": message.ready,
        "not_ready_reason": message.not_ready_reason or None,
        "next_lsn": message.next_lsn,
        "durable_lsn": message.durable_lsn,
        "segments": message.segments,
        "bytes": message.bytes,
        "reserved_bytes": message.reserved_bytes,
        "room": message.room,
        "last_flush_seconds": message.last_flush_seconds,
        "active_transactions": message.active_transactions,
        "blocked_transactions": message.blocked_transactions,
    }


def plan(message: admin_pb2.RecoverResponse, applied: bool) -> Document:
    """What recovery does about every prepared branch, and which participants it saw."""
    return {
        "applied": applied,
        "items": [_plan_item(item) for item in message.items],
        "scans": [
            {"participant": scan.participant, "scanned": scan.scanned, "error": scan.error or None}
            for scan in message.scans
        ],
    }


def _plan_item(message: admin_pb2.PlanItem) -> Document:
    from dtp import FORMAT_ID, Gtrid, XacoordError, parse_bqual

    gtrid: str | None = None
    number = parse_bqual(message.bqual) if message.format_id == FORMAT_ID else None
    if number is not None:
        try:
            gtrid = str(Gtrid.parse(message.gtrid.decode("ascii")))
        except (UnicodeDecodeError, XacoordError):
            number = None
    return {
        "participant": message.participant,
        "gtrid": gtrid,
        "number": number,
        "format_id": message.format_id,
        "gtrid_hex": message.gtrid.hex(),
        "bqual_hex": message.bqual.hex(),
        "action": message.action,
        "reason": message.reason,
        "explanation": message.explanation,
        "result": message.result or None,
    }


def _name(enum: _EnumTypeWrapper[Any], value: int, prefix: str) -> str:
    """An enum value's name without its prefix; 0 is UNKNOWN, a newer server's value its number."""
    try:
        return "UNKNOWN" if value == 0 else str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        return str(value)


def _time(message: Timestamp) -> str | None:
    try:
        return message.ToJsonString()
    except ValueError:  # outside the years 1 to 9999
        return None


def seconds(message: Duration) -> float:
    """A duration in seconds."""
    return float(message.seconds) + message.nanos / 1e9


def duration_text(value: float | None) -> str:
    """A duration for people: 240ms, 3.2s, 4m05s, 2h07m, 3d04h; a dash where it is not known."""
    if value is None:
        return "-"
    if value < 1:
        return f"{max(value, 0) * 1000:.0f}ms"
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m"
    return f"{hours // 24}d{hours % 24:02}h"


def bytes_text(value: int) -> str:
    """A number of bytes for people: 512 B, 1.5 KiB, 64.0 MiB."""
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{value} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
