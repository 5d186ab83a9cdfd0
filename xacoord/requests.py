"""Requests of the protocol, built from what the caller gave. Pure.

Refused here is only what the protocol cannot carry (TypeError, ValueError); everything else is
the server's to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration

from coordinator.v1 import coordinator_pb2 as pb
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from xacoord.statement import Branch, Statement, StatementLike, WaitFor, as_statement
from xacoord.values import encode_text, encode_value

_WAIT_FOR = {"decided": pb.WAIT_FOR_DECIDED, "completed": pb.WAIT_FOR_COMPLETED}


def begin_request(
    timeout_seconds: float | None, idempotency_key: str | None, fingerprint: bytes | None, directory: bool
) -> pb.BeginRequest:
    """The request that begins a transaction; `directory` asks for the agents' addresses."""
    return pb.BeginRequest(
        timeout=_duration(timeout_seconds),
        idempotency_key=_key(idempotency_key),
        fingerprint=fingerprint or b"",
        directory=directory,
    )


def run_request(
    branches: Iterable[Branch],
    timeout_seconds: float | None,
    idempotency_key: str | None,
    wait_for: WaitFor,
    in_order: bool,
) -> pb.RunRequest:
    """The request that does a whole transaction in one call."""
    request = pb.RunRequest(
        timeout=_duration(timeout_seconds),
        idempotency_key=_key(idempotency_key),
        wait_for=encode_wait_for(wait_for),
        in_order=in_order,
    )
    for branch in branches:
        participant = encode_text(branch.participant, "a participant's name")
        added = request.branches.add(participant=participant, read_only=branch.read_only)
        _add_statements(added, branch.statements)
    return request


def execute_request(
    gtrid: str, participant: str, statements: Iterable[StatementLike], read_only: bool
) -> agent_pb.ExecuteRequest:
    """The request that runs statements inside a branch; the agent checks that it is the participant's."""
    request = agent_pb.ExecuteRequest(gtrid=gtrid, participant=participant, read_only=read_only)
    _add_statements(request, statements)
    return request


def commit_request(gtrid: str, wait_for: WaitFor) -> pb.CommitRequest:
    """The request that commits a transaction."""
    return pb.CommitRequest(gtrid=gtrid, wait_for=encode_wait_for(wait_for))


def encode_wait_for(wait_for: str) -> pb.WaitFor.ValueType:
    """What the caller waits for.

    Raises:
        ValueError: neither "decided" nor "completed".
    """
    if wait_for not in _WAIT_FOR:
        raise ValueError(f'wait_for must be "decided" or "completed", not {wait_for!r}')
    return _WAIT_FOR[wait_for]


def _add_statements(
    target: pb.RunBranch | agent_pb.ExecuteRequest, statements: Iterable[StatementLike]
) -> None:
    """Add statements as the protocol carries them. In place: a message that is put into another is copied.

    Raises:
        TypeError: one text in place of a list, or a parameter without an SQL counterpart.
        ValueError: a value that cannot be expressed.
    """
    if isinstance(statements, str | Statement):
        raise TypeError("give a list of statements, not a single one")
    for given in statements:
        statement = as_statement(given)
        params = statement.params
        if isinstance(params, str | bytes | bytearray | memoryview | Mapping) or not isinstance(
            params, Iterable
        ):
            raise TypeError(f"params must be a list or tuple of values, not {type(params).__qualname__}")
        added = target.statements.add(
            sql=encode_text(statement.sql, "a statement's text"),
            expect_rows=_count(statement.expect_rows, "expect_rows"),
            min_rows=_count(statement.min_rows, "min_rows"),
        )
        added.parameters.extend([encode_value(value) for value in params])


def _count(number: int | None, name: str) -> int | None:
    if number is not None and not 0 <= number < 2**64:
        raise ValueError(f"{name} must lie within 0 .. 2^64-1, not {number}")
    return number


def _key(idempotency_key: str | None) -> str:
    return "" if idempotency_key is None else encode_text(idempotency_key, "an idempotency key")


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    if not math.isfinite(seconds):
        raise ValueError(f"a time-out must be a finite number of seconds, not {seconds}")
    nanoseconds = round(seconds * 1e9)
    sign = -1 if nanoseconds < 0 else 1
    whole, rest = divmod(abs(nanoseconds), 1_000_000_000)
    if whole >= 2**63:
        raise ValueError(f"a time-out of {seconds} seconds cannot be sent")
    return Duration(seconds=sign * whole, nanos=sign * rest)
