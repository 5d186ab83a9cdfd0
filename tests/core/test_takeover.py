"""Carrying a derivation out, on a real log and with agents in memory; and agents that do not answer.

Fault model: 1. an agent remembers something else than its answer said; 2. a coordinator is attached again,
before or while fences are taken over; 3. the evidence is another one afterwards; 4. an agent does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator import recall
from coordinator.config import Config, CoordinatorSection, ParticipantSection
from coordinator.core.derive import Memory, Presumption, Seen, Sight
from coordinator.derive import DeriveRefused, Plan, check_applicable, make_plan
from coordinator.journal import open_log
from coordinator.recall import Agents, TakeoverRefused, Told, Unanswered
from coordinator.takeover import Takeover
from dtp import Decision, Gtrid, Xid
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from wal import Options

GTRID = str(Gtrid.make("0001", 7, 5, 9))
LATER = str(Gtrid.make("0001", 8, 5, 9))
NAMES = ("orders", "payments")
ROLLBACK = Presumption(Decision.ROLLBACK)


class FakeAgents(Agents):
    """Two participants, both prepared; `taken`: whose fence was taken over.

    `comes_back`: with how many fences taken over a coordinator is attached again. `elsewhere`: who remembers
    something else. `changes`: a branch is committed by hand when all fences are taken over.
    """

    def __init__(
        self, *, comes_back: int | None = None, elsewhere: str = "", changes: bool = False, gtrid: str = GTRID
    ) -> None:
        self.comes_back, self.elsewhere, self.changes, self.gtrid = comes_back, elsewhere, changes, gtrid
        self.taken: list[str] = []

    async def ask(self, also: Iterable[str] = ()) -> dict[str, Told]:
        told = {}
        for number, name in enumerate(NAMES, 1):
            sight = Sight(Seen.PREPARED, (1, 2))
            if self.changes and len(self.taken) == 2 and number == 1:
                sight = Sight(Seen.COMMITTED, (1, 2))
            memory = Memory(number, 7, 77, b"l" * 16)
            told[name] = Told(memory, True, (Xid.of(self.gtrid, number),), {self.gtrid: sight})
        return told

    async def attached(self, names: Iterable[str]) -> dict[str, int]:
        back = self.comes_back is not None and len(self.taken) >= self.comes_back
        return {name: 7 for name in names if back}

    async def take_over(
        self, name: str, number: int, expected: Memory | None, epoch: int, nonce: int, identity: bytes
    ) -> None:
        assert expected == Memory(number, 7, 77, b"l" * 16)
        assert epoch == 8
        if name == self.elsewhere:
            raise TakeoverRefused(f"{name}: LOG_IDENTITY_CHANGED")
        self.taken.append(name)


def carried_out(directory: Path, agents: FakeAgents, *, overthrow: bool = False) -> Plan:
    """Plan and carry out; the log's directory has then what a start would see."""
    participants = {name: ParticipantSection(f"127.0.0.1:{7000 + i}") for i, name in enumerate(NAMES)}
    config = Config(CoordinatorSection("0001", str(directory)), participants=participants)

    async def play() -> Plan:
        opened = open_log(directory, Options(), on_durable=lambda lsn: None, on_failure=lambda error: None)
        try:
            plan = await make_plan(config, opened.recovered, agents, ROLLBACK)
            check_applicable(plan)
            await Takeover(config, agents, plan, ROLLBACK, overthrow).carry_out(opened)
            return plan
        finally:
            opened.log.close()

    return asyncio.run(play())


def state(directory: Path) -> tuple[int, bool]:
    """The epoch that the log has begun, and whether a derivation has not ended in it."""
    opened = open_log(directory, Options(), on_durable=lambda lsn: None, on_failure=lambda error: None)
    opened.log.close()
    return opened.replayed.epoch, opened.replayed.deriving


@pytest.mark.parametrize(
    ("agents", "reason", "taken", "left"),
    [
        (FakeAgents(comes_back=0), "COORDINATOR_ATTACHED", [], (0, False)),
        (FakeAgents(comes_back=1), "COORDINATOR_ATTACHED", ["orders"], (8, True)),
        (FakeAgents(elsewhere="payments"), "TAKEOVER_FAILED", ["orders"], (8, True)),
        (FakeAgents(changes=True), "EVIDENCE_CHANGED", ["orders", "payments"], (8, True)),
    ],
)
def test_what_stops_it_leaves_nothing_or_a_hold(
    tmp_path: Path, agents: FakeAgents, reason: str, taken: list[str], left: tuple[int, bool]
) -> None:
    with pytest.raises(DeriveRefused) as refused:
        carried_out(tmp_path, agents)
    assert (refused.value.reason, agents.taken, state(tmp_path)) == (reason, taken, left)
    assert ("nothing was changed" in str(refused.value)) is not left[1]


@pytest.mark.parametrize("comes_back", [None, 0, 1])
def test_nothing_else_stops_it(tmp_path: Path, comes_back: int | None) -> None:
    agents = FakeAgents(comes_back=comes_back)
    carried_out(tmp_path, agents, overthrow=comes_back is not None)
    assert (agents.taken, state(tmp_path)) == (["orders", "payments"], (8, False))


def test_a_branch_of_an_epoch_that_nobody_remembers_stops_it_before_anything(tmp_path: Path) -> None:
    agents = FakeAgents(gtrid=LATER)
    with pytest.raises(DeriveRefused, match="by hand") as refused:
        carried_out(tmp_path, agents)
    assert (refused.value.reason, agents.taken, state(tmp_path)) == ("NO_PLAN", [], (0, False))
    assert LATER in str(refused.value)


class Servicer(rpc.ParticipantAgentServicer):
    """An agent that answers, but for the calls that it is told to fail."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing

    async def _answer(self, call: str, answer: Any, context: Any) -> Any:
        if call in self.failing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"no {call}")
        return answer

    async def Recall(self, request: pb.RecallRequest, context: Any) -> pb.RecallResponse:
        answer = pb.RecallResponse(attached_epoch=7)
        for gtrid in request.gtrids:
            answer.recollections.add(gtrid=gtrid, state=pb.EVIDENCE_STATE_COMMITTED)
        call = "sights" if request.gtrids else "memory"
        response: pb.RecallResponse = await self._answer(call, answer, context)
        return response

    async def Scan(self, request: pb.ScanRequest, context: Any) -> pb.ScanResponse:
        response: pb.ScanResponse = await self._answer("scan", pb.ScanResponse(), context)
        return response


async def asked(servicers: dict[str, Servicer | None]) -> dict[str, Told]:
    """Ask all of them about one transaction; nobody listens where there is no servicer."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for name, servicer in servicers.items():
            server = grpc.aio.server()
            port = server.add_insecure_port("127.0.0.1:0")
            addresses[name] = f"127.0.0.1:{port}"
            if servicer is not None:
                rpc.add_ParticipantAgentServicer_to_server(servicer, server)
                await server.start()
            stack.push_async_callback(server.stop, None)
        agents = await stack.enter_async_context(Agents("0001", addresses))
        found = await agents.ask([GTRID])
        assert await agents.attached(addresses) == dict.fromkeys(addresses, 7)
        return found


def test_everybody_is_asked() -> None:
    found = asyncio.run(asked({"orders": Servicer(), "payments": Servicer()}))
    assert {name: (told.attached, told.sights[GTRID].seen) for name, told in found.items()} == {
        "orders": (7, Seen.COMMITTED),
        "payments": (7, Seen.COMMITTED),
    }


@pytest.mark.parametrize("failing", ["memory", "scan", "sights", ""])
def test_who_does_not_answer_is_never_left_out(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(recall, "_CONNECT_SECONDS", 0.5)
    servicers = {"orders": Servicer(), "payments": Servicer(failing) if failing else None}
    with pytest.raises(Unanswered, match="payments") as unanswered:
        asyncio.run(asked(servicers))
    assert "orders" not in str(unanswered.value)
