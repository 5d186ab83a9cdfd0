"""kill -9 of the coordinator at each decisive moment: afterwards both servers agree, nothing stays prepared.

The failpoint kills the real process with SIGKILL; the restart replays the log and reconciles.
"""

from __future__ import annotations

import grpc
import pytest

from tests.system.conftest import System, failpoints

# Place -> what the transaction must have become after the restart.
INTERACTIVE = {
    "after_reply_begun": "ROLLED_BACK",
    "before_write_prepare": "ROLLED_BACK",
    "after_send_prepare": "ROLLED_BACK",
    "input_branch_voted": "ROLLED_BACK",
    "before_force_commit": "ROLLED_BACK",
    "input_records_durable": "COMMITTED",
    "before_send_commit": "COMMITTED",
    "after_send_commit": "COMMITTED",
    "input_branch_finished": "COMMITTED",
    "before_write_end": "COMMITTED",
    "before_reply_decided": "COMMITTED",
}
ONE_SHOT = {
    "before_write_prepare": "ROLLED_BACK",
    "after_send_run": "ROLLED_BACK",
    "before_force_commit": "ROLLED_BACK",
    "before_send_commit": "COMMITTED",
    "after_send_commit": "COMMITTED",
    "before_write_end": "COMMITTED",
}


@pytest.mark.parametrize("place", INTERACTIVE)
def test_interactive(system: System, place: str) -> None:
    row = system.new_id()
    system.restart_coordinator(**failpoints(f"{place}=kill", system.cluster.directory))
    gtrid = ""
    told = ""
    try:
        gtrid = system.begin_work(row)
        told = str(system.commit(gtrid).outcome)
    except grpc.RpcError:
        pass
    assert system.cluster.coordinator.wait() == -9, "the failpoint was not reached"
    assert told == "", "nobody can have been answered"
    system.cluster.start_coordinator()
    system.wait_until_clean()
    assert system.judge(row) == (INTERACTIVE[place] == "COMMITTED")
    if gtrid:
        assert system.outcome(gtrid) == INTERACTIVE[place]
    system.run(system.new_id())


@pytest.mark.parametrize("place", ONE_SHOT)
def test_one_shot(system: System, place: str) -> None:
    row = system.new_id()
    system.restart_coordinator(**failpoints(f"{place}=kill", system.cluster.directory))
    with pytest.raises(grpc.RpcError):
        system.run(row)
    assert system.cluster.coordinator.wait() == -9, "the failpoint was not reached"
    system.cluster.start_coordinator()
    system.wait_until_clean()
    assert system.judge(row) == (ONE_SHOT[place] == "COMMITTED")


def test_an_idempotency_key_survives(system: System) -> None:
    """The answer is lost with the process; the same request again does the work once."""
    row = system.new_id()
    system.restart_coordinator(**failpoints("before_reply_decided=kill", system.cluster.directory))
    with pytest.raises(grpc.RpcError):
        system.run(row, idempotency_key=f"row-{row}")
    assert system.cluster.coordinator.wait() == -9
    system.cluster.start_coordinator()
    again = system.run(row, idempotency_key=f"row-{row}")
    assert again.replayed
    assert system.judge(row)


def test_one_branch_is_committed_in_one_phase_and_its_outcome_is_known(system: System) -> None:
    """No log record exists; the witness row tells."""
    row = system.new_id()
    system.restart_coordinator(**failpoints("input_branch_finished=kill", system.cluster.directory))
    gtrid = system.begin_work(row, names=("orders",))
    with pytest.raises(grpc.RpcError):
        system.commit(gtrid)
    assert system.cluster.coordinator.wait() == -9
    system.cluster.start_coordinator()
    assert row in system.rows("orders")
    assert system.outcome(gtrid) == "COMMITTED"
