"""Messages as a coordinator would send them; keyword arguments change fields."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.v1 import admin_pb2, coordinator_pb2

GTRID = "k1a0b10003000000abcd"
OTHER = "k1a0b10003000000abce"


def log_status(**changes: Any) -> admin_pb2.LogStatusResponse:
    values: dict[str, Any] = {
        "directory": "/var/lib/xacoord/log",
        "identity": "00112233445566778899aabbccddeeff",
        "epoch": 3,
        "next_lsn": 1201,
        "durable_lsn": 1200,
        "segments": 2,
        "bytes": 134217728,
        "reserved_bytes": 4096,
        "room": True,
        "last_flush_seconds": 0.00012,
        "ready": True,
        "coordinator_id": "a0b1",
        "active_transactions": 4,
        "version": "0.1.0",
    }
    return admin_pb2.LogStatusResponse(**{**values, **changes})


def participant(name: str, number: int, **changes: Any) -> admin_pb2.Participant:
    values: dict[str, Any] = {
        "participant": name,
        "number": number,
        "address": f"127.0.0.1:{7500 + number}",
        "state": "UP",
        "server": "MySQL 9.7.4",
        "witness": True,
        "scanned_seconds_ago": 4.5,
    }
    return admin_pb2.Participant(**{**values, **changes})


def transaction(gtrid: str = GTRID, **changes: Any) -> coordinator_pb2.Transaction:
    """Decided to commit; orders has acknowledged, stock does not answer."""
    pb = coordinator_pb2

    def at(milliseconds: int) -> Timestamp:
        return Timestamp(seconds=1_767_323_045, nanos=milliseconds * 1_000_000)

    values: dict[str, Any] = {
        "gtrid": gtrid,
        "state": pb.STATE_COMMITTING,
        "outcome": pb.OUTCOME_COMMITTED,
        "begun_at": at(0),
        "age": Duration(seconds=245, nanos=500_000_000),
        "in_doubt": True,
        "blocked": True,
        "branches": [
            pb.Branch(
                participant="orders",
                number=1,
                state=pb.BRANCH_STATE_NON_EXISTENT,
                outcome=pb.OUTCOME_COMMITTED,
                attempts=1,
            ),
            pb.Branch(
                participant="stock",
                number=2,
                state=pb.BRANCH_STATE_PREPARED,
                outcome=pb.OUTCOME_UNKNOWN,
                attempts=7,
                last_error="SERVER_UNAVAILABLE: 2003",
            ),
        ],
        "timeline": [
            pb.Event(at=at(0), what="begun"),
            pb.Event(at=at(2), what="enlisted", participant="orders"),
            pb.Event(at=at(3), what="enlisted", participant="stock"),
            pb.Event(at=at(9), what="voted OK", participant="stock"),
            pb.Event(at=at(9), what="voted OK", participant="orders"),
            pb.Event(at=at(10), what="decided COMMIT"),
            pb.Event(at=at(12), what="committed", participant="orders"),
        ],
    }
    return pb.Transaction(**{**values, **changes})
