"""Evidence: the outcome of a transaction that the log has dropped, from the witness rows.

A branch that wrote put its gtrid into the participant's witness table in the same transaction. One
row proves that the transaction committed. That no participant has one proves the opposite only
where every participant answers, none is undecided, and none has purged rows of that age.

A transaction that changed nothing leaves no row: for it ROLLED_BACK and COMMITTED are the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from dtp import Outcome
from participant_agent.v1 import participant_agent_pb2 as pb


def judge(evidence: Iterable[int | None]) -> Outcome:
    """The outcome from one EvidenceState a participant; None where one could not be asked."""
    seen = set(evidence)
    if pb.EVIDENCE_STATE_COMMITTED in seen:
        return Outcome.COMMITTED
    if seen == {pb.EVIDENCE_STATE_NOT_COMMITTED}:
        return Outcome.ROLLED_BACK
    return Outcome.UNKNOWN
