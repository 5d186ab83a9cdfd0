"""The books: what was lost, made twice or left behind is found."""

from __future__ import annotations

from collections import Counter

from deploy.bench.plan import Case, Side
from deploy.bench.run import Measured, Results, problems
from deploy.bench.servers import OPENING_BALANCE, ROWS

OPENING = ROWS * OPENING_BALANCE


def slot(committed: int = 0, rolled_back: int = 0, unknown: int = 0) -> Measured:
    told = Counter({"committed": committed, "rolled_back": rolled_back, "unknown": unknown})
    return Measured(1.0, [], {}, None, told, [])


def results(*cases: tuple[Case, list[Measured]]) -> Results:
    return Results({case: {Side("raw"): slots} for case, slots in cases})


def test_books_that_agree() -> None:
    done = results(
        (Case(2, 8), [slot(committed=10), slot(committed=5, rolled_back=3)]),
        (Case(1, 8), [slot(committed=7)]),
        (Case(2, 8, read_only=True), [slot(committed=100)]),
    )
    assert problems(done, [], [OPENING + 22, OPENING - 15]) == []


def test_what_was_done_before_the_first_slot_counts() -> None:
    done = results((Case(1, 1), [slot(committed=7)]))
    done.rehearsed[Case(1, 1)] = Counter(committed=3)
    assert problems(done, [], [OPENING + 10]) == []


def test_a_lost_transaction_is_found() -> None:
    done = results((Case(2, 8), [slot(committed=10)]))
    [found] = problems(done, [], [OPENING + 9, OPENING - 10])
    assert found.startswith("server 1: its balances show 9 transactions")
    assert "10 committed" in found


def test_a_transaction_that_nobody_was_told_of_is_found() -> None:
    done = results((Case(2, 8), [slot(committed=10, rolled_back=1)]))
    assert len(problems(done, [], [OPENING + 11, OPENING - 11])) == 2


def test_a_half_transaction_is_found() -> None:
    done = results((Case(4, 8), [slot(committed=10)]))
    [found] = problems(done, [], [OPENING + 10, OPENING - 10, OPENING + 10, OPENING - 9])
    assert found.startswith("server 4:")


def test_unknown_outcomes_may_be_either_and_are_told() -> None:
    done = results((Case(2, 8), [slot(committed=10, unknown=2)]))
    for moved in (10, 11, 12):
        [found] = problems(done, [], [OPENING + moved, OPENING - moved])
        assert "how 2 transactions ended" in found
    assert len(problems(done, [], [OPENING + 13, OPENING - 12])) == 2


def test_branches_that_are_left_are_told() -> None:
    done = results((Case(1, 1), [slot()]))
    [found] = problems(done, [f"xb{number} on a" for number in range(5)], [OPENING])
    assert found == "branches are left prepared: xb0 on a, xb1 on a, xb2 on a and 2 more"
