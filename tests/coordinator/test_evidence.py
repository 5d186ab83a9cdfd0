"""The judge of witness rows: it must say UNKNOWN wherever it would have to guess."""

from __future__ import annotations

from itertools import product

import pytest

from coordinator.evidence import judge
from dtp import Outcome
from participant_agent.v1 import participant_agent_pb2 as pb

# Every answer an agent can give, one that no version gives yet, and None: it could not be asked.
ANSWERS: tuple[int | None, ...] = (*pb.EvidenceState.values(), 99, None)
TABLE = [answers for count in range(4) for answers in product(ANSWERS, repeat=count)]


@pytest.mark.parametrize("count", range(4))
def test_every_combination_of_answers(count: int) -> None:
    for answers in (row for row in TABLE if len(row) == count):
        if any(answer == pb.EVIDENCE_STATE_COMMITTED for answer in answers):
            expected = Outcome.COMMITTED
        elif answers and all(answer == pb.EVIDENCE_STATE_NOT_COMMITTED for answer in answers):
            expected = Outcome.ROLLED_BACK
        else:
            expected = Outcome.UNKNOWN
        assert judge(answers) is expected, answers
        assert judge(iter(answers)) is expected, "the answers may come as they are gathered"


def test_the_table_has_what_it_is_for() -> None:
    assert len(TABLE) == 1 + 7 + 7**2 + 7**3
    assert judge([]) is Outcome.UNKNOWN
    no, undecided = pb.EVIDENCE_STATE_NOT_COMMITTED, pb.EVIDENCE_STATE_UNDECIDED
    assert judge([no, no, no]) is Outcome.ROLLED_BACK
    for other in (None, undecided, pb.EVIDENCE_STATE_NONE, pb.EVIDENCE_STATE_UNSPECIFIED):
        assert judge([no, no, other]) is Outcome.UNKNOWN
    assert judge([None, pb.EVIDENCE_STATE_COMMITTED, no]) is Outcome.COMMITTED
