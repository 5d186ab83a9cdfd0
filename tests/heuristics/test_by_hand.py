"""People end prepared branches: decision x what they do x where x coordinator there or not x proof or none.

What must be seen is written down here as a table, not computed by what it judges. Every case has to be told
alike by the answer to the waiting client, Get, `coordctl`, the metrics, the log and the keys of repeated
requests; it is kept over restarts until `coordctl forget`, and branches of others beside it are not touched.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from coordinator.ctl import documents
from coordinator.v1 import admin_pb2
from coordinator.v1 import coordinator_pb2 as pb
from deploy.private_servers import PrivateServer
from tests.heuristics.batch import Batch, Case
from tests.heuristics.conftest import delete_rows
from tests.heuristics.person import end_by_hand, stranger_beside
from tests.system.conftest import NAMES, System

# (decision, by hand, at every participant) -> (outcome, what each touched branch is counted as)
WITH_PROOF = {
    ("COMMIT", "", False): ("COMMITTED", ""),
    ("COMMIT", "commit", False): ("COMMITTED", ""),  # exactly what was decided, with the witness row as proof
    ("COMMIT", "commit", True): ("COMMITTED", ""),
    ("COMMIT", "rollback", False): ("HEURISTIC_MIXED", "rollback"),
    ("COMMIT", "rollback", True): ("HEURISTIC_ROLLBACK", "rollback"),
    ("ROLLBACK", "", False): ("ROLLED_BACK", ""),
    ("ROLLBACK", "rollback", False): ("ROLLED_BACK", ""),
    ("ROLLBACK", "rollback", True): ("ROLLED_BACK", ""),
    ("ROLLBACK", "commit", False): ("HEURISTIC_MIXED", "commit"),
    ("ROLLBACK", "commit", True): ("HEURISTIC_COMMIT", "commit"),
}
# A branch that is gone says nothing then; one to be rolled back counts as rolled back (docs/agent.md).
WITHOUT_PROOF = WITH_PROOF | {
    ("COMMIT", "commit", False): ("HEURISTIC_HAZARD", "hazard"),
    ("COMMIT", "commit", True): ("HEURISTIC_HAZARD", "hazard"),
    ("COMMIT", "rollback", False): ("HEURISTIC_HAZARD", "hazard"),
    ("COMMIT", "rollback", True): ("HEURISTIC_HAZARD", "hazard"),
    ("ROLLBACK", "commit", False): ("ROLLED_BACK", ""),
    ("ROLLBACK", "commit", True): ("ROLLED_BACK", ""),
}


@pytest.mark.parametrize("witness", [True, False], ids=["proof", "no-proof"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "absent"])
@pytest.mark.parametrize("decision", ["COMMIT", "ROLLBACK"])
def test_by_hand(systems: Callable[[bool], System], decision: str, running: bool, witness: bool) -> None:
    system = systems(witness)
    batch = Batch(system, decision, running)
    with ThreadPoolExecutor(len(batch.cases)) as pool, stranger_beside(_server(system, "orders"), "orders"):
        batch.prepare(pool)
        for case in batch.cases:
            for name in case.sites:
                end_by_hand(_server(system, name), case.verb, case.gtrid)
        batch.go_on()
        told = Judge(system, decision, witness, batch.cases)
        told.the_rows_are_what_was_done()
        if running:
            told.clients_heard_it()
        told.get_and_list_say_it()
        told.coordctl_says_it()
        told.metrics_and_log_say_it()
        told.keys_are_kept()
        system.restart_coordinator()  # a checkpoint, too
        told.get_and_list_say_it(restarted=True)
        told.keys_are_kept()
        told.forgetting_ends_it()


def _server(system: System, name: str) -> PrivateServer:
    return system.cluster.sites[name].server


class Judge:
    """What is told of each case, by every way there is."""

    def __init__(self, system: System, decision: str, witness: bool, cases: list[Case]) -> None:
        self.system, self.cluster = system, system.cluster
        self.decision, self.witness, self.cases = decision, witness, cases
        self.table = WITH_PROOF if witness else WITHOUT_PROOF

    def expected(self, case: Case) -> tuple[str, str]:
        return self.table[self.decision, case.verb, len(case.sites) == len(NAMES)]

    def heuristic(self) -> dict[str, str]:
        """Those that have to stay listed."""
        found = {case.gtrid: self.expected(case)[0] for case in self.cases}
        return {gtrid: outcome for gtrid, outcome in found.items() if outcome.startswith("HEURISTIC")}

    def the_rows_are_what_was_done(self) -> None:
        for name in NAMES:
            rows = self.system.rows(name)
            for case in self.cases:
                committed = case.verb == "commit" if name in case.sites else self.decision == "COMMIT"
                assert (case.row in rows) == committed, f"{case} at {name}"

    def clients_heard_it(self) -> None:
        for case in self.cases:
            assert case.told == self.expected(case)[0], case

    def get_and_list_say_it(self, restarted: bool = False) -> None:
        states = [pb.STATE_HEURISTIC]
        listed = self.system.coordinator.List(pb.ListRequest(states=states), timeout=10).transactions
        open_ = {found.gtrid: documents.transaction(found) for found in listed if not found.forgotten}
        assert {gtrid: document["outcome"] for gtrid, document in open_.items()} == self.heuristic()
        assert self.cluster.metric("xacoord_transactions_active", state="heuristic") == len(open_)
        for case in self.cases:
            outcome, kind = self.expected(case)
            if not kind:
                dropped = (
                    restarted and not self.witness
                )  # ended, so the log has it no more, and nothing else tells
                assert self.system.outcome(case.gtrid) == ("UNKNOWN" if dropped else outcome), case
                continue
            assert self.system.outcome(case.gtrid) == outcome, case
            assert open_[case.gtrid]["state"] == "HEURISTIC"
            branches = {branch["participant"]: branch for branch in open_[case.gtrid]["branches"]}
            for name in case.sites:
                assert branches[name]["outcome"] == f"HEURISTIC_{kind.upper()}", case
                assert branches[name]["state"] == "HEURISTICALLY_COMPLETED", case
            assert sum(b["outcome"].startswith("HEURISTIC") for b in branches.values()) == len(case.sites)

    def coordctl_says_it(self) -> None:
        found: Any = self.cluster.coordctl_json("list", "--state", "HEURISTIC")["transactions"]
        open_ = {document["gtrid"]: document for document in found if not document["forgotten"]}
        assert {gtrid: document["outcome"] for gtrid, document in open_.items()} == self.heuristic()
        for gtrid in [*open_][:1]:
            shown = self.cluster.coordctl("show", gtrid).stdout
            assert f"coordctl forget {gtrid}" in shown
            assert "HEURISTICALLY_COMPLETED" in shown
        status = self.cluster.coordctl("status", "--check", "-o", "json", check=False)
        assert {h["gtrid"] for h in json.loads(status.stdout)["heuristic"]} == set(open_)
        assert (status.returncode != 0) == bool(open_)

    def metrics_and_log_say_it(self) -> None:
        expected: Counter[tuple[str, str]] = Counter()
        log = self.cluster.coordinator.output.read_text()
        for case in self.cases:
            _, kind = self.expected(case)
            lines = [line for line in log.splitlines() if case.gtrid in line and "HEURISTIC" in line]
            assert len(lines) == (len(case.sites) if kind else 0), lines
            for name in case.sites if kind else ():
                expected[name, kind] += 1
                assert any(name in line and f"HEURISTIC_{kind.upper()}" in line for line in lines)
                agent = self.cluster.sites[name].agent.output.read_text()
                assert any(case.gtrid in line and "heuristic outcome" in line for line in agent.splitlines())
        for name in NAMES:
            for kind in ("commit", "rollback", "mixed", "hazard"):
                found = self.cluster.metric("xacoord_heuristic_outcomes_total", participant=name, kind=kind)
                assert found == expected[name, kind], (name, kind)

    def keys_are_kept(self, forgotten: bool = False) -> None:
        """The same request again does nothing twice."""
        for case in self.cases:
            outcome, _ = self.expected(case)
            says = self._begin_again(case)
            if outcome == "COMMITTED":
                assert says == "already committed", case
            elif not outcome.startswith("HEURISTIC") or (forgotten and outcome == "HEURISTIC_ROLLBACK"):
                assert says == "begun", case
            else:
                assert says == ("HEURISTIC_OUTCOME" if forgotten else "IDEMPOTENCY_IN_PROGRESS"), case

    def _begin_again(self, case: Case) -> str:
        stub = self.system.coordinator
        try:
            begun = stub.Begin(pb.BeginRequest(idempotency_key=case.key, fingerprint=b"content"), timeout=10)
        except grpc.RpcError as error:
            trailers = str(error.trailing_metadata())  # type: ignore[attr-defined]
            reasons = ("HEURISTIC_OUTCOME", "IDEMPOTENCY_IN_PROGRESS")
            return next((reason for reason in reasons if reason in trailers), trailers)
        if begun.already_committed:
            return "already committed"
        stub.Rollback(pb.RollbackRequest(gtrid=begun.gtrid), timeout=10)
        return "begun"

    def forgetting_ends_it(self) -> None:
        for number, (gtrid, outcome) in enumerate(self.heuristic().items()):
            if self.decision == "ROLLBACK" and outcome == "HEURISTIC_MIXED":
                delete_rows(self.system, gtrid)
            if number == 0:
                self.cluster.coordctl("forget", gtrid, "--yes")
                log = self.cluster.coordinator.output.read_text()
                assert any("forget" in line and gtrid in line for line in log.splitlines())
            else:
                self.system.admin.Forget(admin_pb2.ForgetRequest(gtrid=gtrid), timeout=10)
        assert self.cluster.metric("xacoord_transactions_active", state="heuristic") == 0
        self.keys_are_kept(forgotten=True)
        self.system.restart_coordinator()
        assert self.cluster.coordctl_json("list", "--state", "HEURISTIC")["transactions"] == []
        self.keys_are_kept(forgotten=True)
