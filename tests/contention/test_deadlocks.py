"""Deadlocks across servers are found: with real servers, agents and processes, on both engines.

Nothing here measures time. The lock wait time-out is longer than the tests' patience, so what ends in time
was not ended by it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.private_cluster import AGENT_USER, Cluster, wait_for
from dtp import Reason
from tests.contention.conftest import BUMP, PATIENCE_SECONDS, Field, Work, bump
from xacoord import Branch, RolledBack, Statement, Transaction


def end(work: Work, transaction: Transaction) -> RolledBack | None:
    """Wait for a transaction's last statement and commit; the error where it was rolled back."""
    try:
        work.result()
        transaction.commit()
    except RolledBack as error:
        return error
    return None


def assert_deadlock(error: RolledBack | None) -> None:
    assert error is not None
    assert error.reason == Reason.DEADLOCK
    assert error.retryable


def test_two_in_opposite_orders(anywhere: Field) -> None:
    row, before = anywhere.row(), anywhere.deadlocks()
    elder, younger = anywhere.begin(), anywhere.begin()
    bump(elder, "north", row)
    bump(younger, "south", row)
    first = Work(bump, elder, "south", row)
    second = Work(bump, younger, "north", row)
    assert_deadlock(end(second, younger))
    assert end(first, elder) is None
    assert (anywhere.balance("north", row), anywhere.balance("south", row)) == (1, 1)
    assert anywhere.deadlocks() == before + 1


def test_the_youngest_goes_also_where_it_waited_first(field: Field) -> None:
    row = field.row()
    elder, younger = field.begin(), field.begin()
    bump(elder, "north", row)
    bump(younger, "south", row)
    second = Work(bump, younger, "north", row)
    field.wait_until_it_waits(younger.gtrid, "north")
    first = Work(bump, elder, "south", row)
    assert_deadlock(end(second, younger))
    assert end(first, elder) is None


def test_one_shots_whose_other_branches_are_prepared(anywhere: Field) -> None:
    """On MySQL a prepared branch has no session any more; its witness row names it."""
    row = anywhere.row()
    quick = Statement(BUMP, (row,), 1)
    late = [Statement("SELECT SLEEP(0.5)"), quick]
    works = [
        Work(anywhere.manager.run, [Branch(one, [quick]), Branch(other, late)])
        for one, other in (("north", "south"), ("south", "north"))
    ]
    errors = []
    for work in works:
        try:
            work.result()
        except RolledBack as error:
            errors.append(error)
    (error,) = errors
    assert_deadlock(error)
    assert (anywhere.balance("north", row), anywhere.balance("south", row)) == (1, 1)


def test_three_over_three(field: Field) -> None:
    row = field.row()
    names = ("north", "south", "west")
    transactions = [field.begin() for _ in names]
    for transaction, name in zip(transactions, names, strict=True):
        bump(transaction, name, row)
    following = (*names[1:], names[0])
    works = [Work(bump, t, name, row) for t, name in zip(transactions, following, strict=True)]
    errors = [end(works[place], transactions[place]) for place in (2, 1, 0)]
    assert_deadlock(errors[0])
    assert errors[1:] == [None, None]
    assert [field.balance(name, row) for name in names] == [1, 2, 1]


def test_a_retry_goes_through(field: Field) -> None:
    """Everybody retries what is retryable, and in the end all is done once."""
    row = field.row()

    def transfer(one: str, other: str) -> int:
        for attempt in range(50):
            try:
                with field.manager.transaction() as transaction:
                    bump(transaction, one, row)
                    bump(transaction, other, row)
                return attempt
            except RolledBack as error:
                if not error.retryable:
                    raise
        raise AssertionError("it never went through")

    orders = [("north", "south"), ("south", "north")] * 3
    works = [Work(transfer, *order) for order in orders]
    for work in works:
        work.result()
    assert (field.balance("north", row), field.balance("south", row)) == (6, 6)


def test_a_foreign_session_is_shown_and_nobody_goes(field: Field) -> None:
    row, before = field.row(), field.deadlocks()
    foreign = field.cluster.sites["north"].server.root_connect(autocommit=False, database="north")
    cursor = foreign.cursor()
    cursor.execute(BUMP, (row,))
    transaction = field.begin()
    work = Work(bump, transaction, "north", row)
    (blocker,) = field.wait_until_it_waits(transaction.gtrid, "north")
    assert blocker == {
        "gtrid": None,
        "prepared": False,
        "connection_id": foreign.thread_id(),
        "account": "root@localhost",
    }
    assert f"connection {foreign.thread_id()} of root@localhost" in field.cluster.coordctl("list").stdout
    metric = field.cluster.metric
    assert metric("xacoord_lock_waits", participant="north", blocker="foreign") == 1
    assert metric("xacoord_lock_waits", participant="south", blocker="foreign") == 0
    foreign.rollback()
    assert end(work, transaction) is None
    assert field.deadlocks() == before
    foreign.close()


def test_a_foreign_prepared_branch_is_shown(field: Field) -> None:
    row, before = field.row(), field.deadlocks()
    server = field.cluster.sites["north"].server
    foreign = server.root_connect(database="north")
    cursor = foreign.cursor()
    for sql in ("XA START 'foreign'", BUMP % row, "XA END 'foreign'", "XA PREPARE 'foreign'"):
        cursor.execute(sql)
    foreign.close()
    transaction = field.begin()
    work = Work(bump, transaction, "north", row)
    (blocker,) = field.wait_until_it_waits(transaction.gtrid, "north")
    assert blocker == {"gtrid": None, "prepared": True, "connection_id": None, "account": None}
    server.sql("XA ROLLBACK 'foreign'")
    assert end(work, transaction) is None
    assert field.deadlocks() == before
    assert field.balance("north", row) == 1


def test_a_prepared_branch_of_ours_is_shown_by_its_name(field: Field) -> None:
    """It is prepared at north, and its other branch waits for a foreign session at south."""
    row = field.row()
    foreign = field.cluster.sites["south"].server.root_connect(autocommit=False, database="south")
    foreign.cursor().execute(BUMP, (row,))
    bumps = [Statement(BUMP, (row,), 1)]
    one_shot = Work(field.manager.run, [Branch("north", bumps), Branch("south", bumps)])
    prepared = field.cluster.prepared
    wait_for(lambda: bool(prepared("north")), PATIENCE_SECONDS, lambda: "it does not prepare")
    transaction = field.begin()
    work = Work(bump, transaction, "north", row)
    (blocker,) = field.wait_until_it_waits(transaction.gtrid, "north")
    assert blocker["prepared"]
    assert blocker["gtrid"] not in (None, transaction.gtrid)
    (foreigner,) = field.wait_until_it_waits(blocker["gtrid"], "south")
    assert foreigner["connection_id"] == foreign.thread_id()
    foreign.rollback()
    assert one_shot.result().gtrid == blocker["gtrid"]
    assert end(work, transaction) is None
    assert (field.balance("north", row), field.balance("south", row)) == (2, 1)
    foreign.close()


def test_a_circle_through_a_foreign_session(field: Field) -> None:
    """younger waits at north for a foreign session, which waits there for elder, who waits at south."""
    wanted, held = field.row(), field.row()
    foreign = field.cluster.sites["north"].server.root_connect(autocommit=False, database="north")
    cursor = foreign.cursor()
    cursor.execute(BUMP, (held,))
    elder, younger = field.begin(), field.begin()
    bump(elder, "north", wanted)
    bump(younger, "south", wanted)
    foreigner = Work(cursor.execute, BUMP, (wanted,))
    second = Work(bump, younger, "north", held)
    field.wait_until_it_waits(younger.gtrid, "north")
    first = Work(bump, elder, "south", wanted)
    assert_deadlock(end(second, younger))
    assert end(first, elder) is None
    foreigner.result()
    foreign.rollback()
    foreign.close()


@pytest.fixture(scope="module")
def blind(make_field: Callable[..., Field]) -> Field:
    """The agents' accounts may not look."""

    def revoke(cluster: Cluster) -> None:
        for site in cluster.sites.values():
            site.server.sql(f"REVOKE PROCESS ON *.* FROM {AGENT_USER}")
            if cluster.engine == "mysql":
                site.server.sql(f"REVOKE SELECT ON performance_schema.* FROM {AGENT_USER}")

    return make_field(2, revoke)


def test_where_nobody_may_look_the_lock_wait_time_out_ends_it(blind: Field) -> None:
    row = blind.row()
    elder, younger = blind.begin(), blind.begin()
    bump(elder, "north", row)
    bump(younger, "south", row)
    first = Work(bump, elder, "south", row)
    second = Work(bump, younger, "north", row)
    errors = [error for error in (end(second, younger), end(first, elder)) if error is not None]
    assert errors
    assert {error.reason for error in errors} == {Reason.LOCK_TIMEOUT}
    assert blind.deadlocks() == 0
    said = blind.cluster.sites["north"].agent.output.read_text()
    assert said.count("deadlocks across servers may go unseen") == 1
