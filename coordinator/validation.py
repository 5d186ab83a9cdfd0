"""Validation: what callers send, checked once, before the core sees it."""

from __future__ import annotations

import hashlib
import re

from google.protobuf.duration_pb2 import Duration

from coordinator.core.inputs import RunBranch, WaitFor
from coordinator.v1 import coordinator_pb2 as pb
from dtp import Gtrid, Reason, XacoordError

MAX_KEY_BYTES = 128
MAX_FINGERPRINT_BYTES = 32
MAX_STATEMENTS = 256
MAX_SQL_BYTES = 1 << 20
MAX_PARAMETERS = 65_535
MAX_BRANCHES = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")

_WAIT_FOR = {
    pb.WAIT_FOR_UNSPECIFIED: WaitFor.COMPLETED,
    pb.WAIT_FOR_COMPLETED: WaitFor.COMPLETED,
    pb.WAIT_FOR_DECIDED: WaitFor.DECIDED,
}


def gtrid(text: str, coordinator_id: str) -> str:
    """A gtrid of this coordinator.

    Raises:
        XacoordError: INVALID_GTRID, or UNKNOWN_TRANSACTION where it is another coordinator's.
    """
    if Gtrid.parse(text).coordinator_id != coordinator_id:
        raise XacoordError(
            Reason.UNKNOWN_TRANSACTION,
            f"{text} belongs to coordinator {text[2:6]!r}, this is {coordinator_id!r}: ask that one",
            gtrid=text,
        )
    return text


def timeout(message: Duration | None) -> float | None:
    """Seconds, or None where the caller named none. The core checks the range."""
    return None if message is None else seconds(message, "timeout")


def seconds(message: Duration, field: str) -> float:
    """A Duration's seconds; one that protobuf calls invalid is refused."""
    if abs(message.nanos) > 999_999_999 or message.seconds * message.nanos < 0:
        raise _invalid(
            f"{field}: {message.seconds} s and {message.nanos} ns are no Duration; nanos are at most "
            "999,999,999 and have the sign of seconds"
        )
    return message.seconds + message.nanos / 1e9


def one_line(text: str, field: str, least: int, most: int) -> str:
    """`text` without surrounding blanks: `least` to `most` characters, none of them a control character."""
    if len(text) > most or len(text.strip()) < least or not text.isprintable():
        raise _invalid(f"{field}: give {least} to {most} printable characters")
    return text.strip()


def wait_for(value: int) -> WaitFor:
    """What the caller waits for; unknown numbers are refused."""
    try:
        return _WAIT_FOR[value]  # type: ignore[index]
    except KeyError:
        raise _invalid(f"wait_for {value} is not known; use DECIDED or COMPLETED") from None


def idempotency(key: str, fingerprint: bytes = b"") -> None:
    """Limits of an idempotency key and its fingerprint."""
    if len(key.encode()) > MAX_KEY_BYTES:
        raise _invalid(f"idempotency_key has more than {MAX_KEY_BYTES} bytes")
    if len(fingerprint) > MAX_FINGERPRINT_BYTES:
        raise _invalid(f"fingerprint has more than {MAX_FINGERPRINT_BYTES} bytes")
    if fingerprint and not key:
        raise _invalid("fingerprint without idempotency_key")


def branches(request: pb.RunRequest) -> tuple[RunBranch, ...]:
    """The branches of a one-shot transaction, with their limits checked."""
    if len(request.branches) > MAX_BRANCHES:
        raise XacoordError(
            Reason.TOO_MANY_BRANCHES, f"{len(request.branches)} branches; at most {MAX_BRANCHES} are possible"
        )
    for branch in request.branches:
        if not _NAME.fullmatch(branch.participant):
            shown = branch.participant[:64]
            raise _invalid(f"participant {shown!r}: a name is 1 to 40 characters of [a-z0-9_-]")
        if not 1 <= len(branch.statements) <= MAX_STATEMENTS:
            raise _invalid(
                f"branch {branch.participant!r} has {len(branch.statements)} statements; "
                f"give 1 to {MAX_STATEMENTS}"
            )
        for index, statement in enumerate(branch.statements):
            where = f"branch {branch.participant!r}, statement {index}"
            if not statement.sql.strip():
                raise _invalid(f"{where}: sql is empty")
            if len(statement.sql.encode()) > MAX_SQL_BYTES:
                raise _invalid(f"{where}: sql has more than {MAX_SQL_BYTES} bytes")
            if len(statement.parameters) > MAX_PARAMETERS:
                raise _invalid(f"{where}: more than {MAX_PARAMETERS} parameters")
    return tuple(
        RunBranch(branch.participant, branch.statements, branch.read_only) for branch in request.branches
    )


def run_fingerprint(request: pb.RunRequest) -> bytes:
    """What the idempotency key of a Run stands for: its branches and their order of work."""
    content = pb.RunRequest(branches=request.branches, in_order=request.in_order)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def _invalid(message: str) -> XacoordError:
    return XacoordError(Reason.INVALID_REQUEST, message)
