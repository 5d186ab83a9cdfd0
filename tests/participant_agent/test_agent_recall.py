"""Recall and takeover: what an agent tells, and takes, when its coordinator has lost the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    ROLLED_BACK,
    AgentProcess,
    Coordinator,
    bump,
    coordinating,
    reason,
    v,
    witnesses,
)
from tests.participant_agent.conftest import open_shop

NEW_NONCE = 77
NEW_LOG = b"n" * 16


async def recall(c: Coordinator, *gtrids: str, coordinator_id: str = "") -> pb.RecallResponse:
    request = pb.RecallRequest(coordinator_id=coordinator_id or c.id, gtrids=gtrids)
    return await c.stub.Recall(request, timeout=20)


async def recall_for_ever(c: Coordinator, *gtrids: str) -> pb.RecallResponse:
    """Ask until the server is back."""
    while True:
        try:
            return await recall(c, *gtrids)
        except grpc.RpcError as error:
            if reason(error) != "SERVER_UNAVAILABLE":
                raise
            await asyncio.sleep(0.1)


def told(answer: pb.RecallResponse) -> list[tuple[str, bool, list[int]]]:
    """State, prepared and named participants, one a gtrid."""
    return [
        (
            pb.EvidenceState.Name(found.state).removeprefix("EVIDENCE_STATE_"),
            found.prepared,
            list(found.participants),
        )
        for found in answer.recollections
    ]


async def prepare(c: Coordinator, gtrid: str, key: int) -> None:
    """Prepare a branch of a transaction with participants 3 and 7."""
    await c.execute(gtrid, bump(key))
    voted = await c.ask(gtrid, prepare=pb.Prepare(participants=[3, 7]))
    assert voted.vote == pb.VOTE_OK


def takeover(remembered: pb.Memory, **changes: Any) -> pb.Takeover:
    fields = {
        "epoch": remembered.epoch,
        "nonce": remembered.nonce,
        "log_identity": remembered.log_identity,
    } | changes
    return pb.Takeover(**fields)


async def take_over(c: Coordinator, epoch: int, expected: pb.Takeover, **changes: Any) -> pb.FenceResponse:
    only = [pb.Epoch(epoch=epoch, nonce=NEW_NONCE)]
    return await c.fence(epoch=epoch, log_identity=NEW_LOG, history=only, takeover=expected, **changes)


def test_all_that_is_known_of_a_transaction(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent, epoch=4) as c:
            committed, prepared, working, absent = (c.gtrid() for _ in range(4))
            await prepare(c, committed, 1)
            await c.commit(committed)
            await prepare(c, prepared, 2)
            await c.execute(working, bump(3))
            answer = await recall(c, committed, prepared, working, absent, prepared)
            assert told(answer) == [
                ("COMMITTED", False, [3, 7]),
                ("UNDECIDED", True, [3, 7]),
                ("UNDECIDED", False, []),
                ("NOT_COMMITTED", False, []),
                ("UNDECIDED", True, [3, 7]),
            ]
            memory = answer.memory
            assert (memory.epoch, memory.number, memory.log_identity) == (4, 7, c.identity)
            assert answer.last_committed == committed
            assert answer.server.witness
            assert answer.attached_epoch == 4
            # What it looked at is as it was: sessions go on at their own isolation.
            assert told(await recall(c, prepared)) == [("UNDECIDED", True, [3, 7])]
            assert (await c.rollback(prepared)).state == ROLLED_BACK
            assert (await c.rollback(working)).state == ROLLED_BACK

    asyncio.run(play())


def test_a_coordinator_that_never_came_is_not_remembered(agent: AgentProcess) -> None:
    async def play() -> None:
        c = Coordinator(agent)
        answer = await recall(c, c.gtrid())
        assert not answer.HasField("memory")
        assert told(answer) == [("NONE", False, [])]
        for arguments, expected in (
            ((c, Coordinator(agent, coordinator_id="zzzy").gtrid()), "INVALID_GTRID"),
            ((c, *["k1" + "0" * 18] * 1001), "INVALID_REQUEST"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                await recall(*arguments)
            assert reason(refused.value) == expected
        request = pb.RecallRequest(coordinator_id=c.id, participant="other")
        with pytest.raises(grpc.RpcError) as refused:
            await c.stub.Recall(request, timeout=20)
        assert reason(refused.value) == "PARTICIPANT_MISMATCH"
        with pytest.raises(grpc.RpcError) as refused:
            await recall(c, coordinator_id="A'; ")
        assert reason(refused.value) == "INVALID_REQUEST"
        await c.channel.close()

    asyncio.run(play())


def test_the_row_of_a_prepared_branch_is_read_after_the_server_was_killed(
    new_server: Callable[..., PrivateServer], new_agent: Any
) -> None:
    server = new_server()
    open_shop(server)
    agent = new_agent(server)
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await prepare(c, gtrid, 1)
            server.kill()
            server.start()
            answer = await recall_for_ever(c, gtrid)
            assert told(answer) == [("UNDECIDED", True, [3, 7])]
            assert witnesses(server, gtrid) == 0, "it is not committed"
            await c.attach()
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


def test_without_witness_rows_nothing_is_named(shop: PrivateServer, new_agent: Any) -> None:
    agent = new_agent(shop, extra="[witness]\nenabled = false\n")
    agent.start()

    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            await prepare(c, gtrid, 1)
            answer = await recall(c, gtrid, c.gtrid())
            assert told(answer) == [("UNDECIDED", True, []), ("NONE", False, [])]
            assert not answer.server.witness
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


def test_a_takeover_compares_before_it_swaps(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        c = Coordinator(agent, epoch=5)
        await c.fence()
        memory = (await recall(c)).memory
        before = shop.sql("SELECT * FROM xacoord.coordinator WHERE coordinator_id = %s", (c.id,))
        for expected, epoch, why in (
            (takeover(memory, epoch=4), 6, "LOG_IDENTITY_CHANGED"),
            (takeover(memory, nonce=memory.nonce + 1), 6, "LOG_IDENTITY_CHANGED"),
            (takeover(memory, log_identity=b"f" * 16), 6, "LOG_IDENTITY_CHANGED"),
            (takeover(memory), 5, "INVALID_REQUEST"),
            (takeover(memory, epoch=9), 6, "INVALID_REQUEST"),
            (takeover(memory, log_identity=b"short"), 6, "INVALID_REQUEST"),
            (takeover(memory, epoch=0), 6, "INVALID_REQUEST"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                await take_over(c, epoch, expected)
            assert reason(refused.value) == why, expected
        with pytest.raises(grpc.RpcError) as refused:
            await take_over(c, 6, takeover(memory), number=8)
        assert reason(refused.value) == "PARTICIPANT_MISMATCH"
        assert shop.sql("SELECT * FROM xacoord.coordinator WHERE coordinator_id = %s", (c.id,)) == before

        await take_over(c, 6, takeover(memory))
        await take_over(c, 6, takeover(memory))  # its answer was lost
        after = (await recall(c)).memory
        assert (after.epoch, after.nonce, after.log_identity) == (6, NEW_NONCE, NEW_LOG)
        assert (after.number, after.purged_to) == (memory.number, memory.purged_to)
        with pytest.raises(grpc.RpcError) as too_late:
            await take_over(c, 7, takeover(memory))
        assert reason(too_late.value) == "LOG_IDENTITY_CHANGED"
        # The real log: refused now, refused when its epochs have gone beyond.
        for epoch in (5, 6, 7, 900):
            with pytest.raises(grpc.RpcError) as real:
                await c.fence(epoch=epoch)
            assert reason(real.value) == "LOG_IDENTITY_CHANGED"
        await c.channel.close()

    asyncio.run(play())


def test_a_takeover_ends_the_sessions_of_the_real_log(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        before = v(shop, 2)
        async with coordinating(agent, epoch=5) as real:
            active, prepared = real.gtrid(), real.gtrid()
            await real.execute(active, bump(1))
            await prepare(real, prepared, 2)
            memory = (await recall(real, active)).memory
            answer = await take_over(real, 6, takeover(memory))
            assert answer.ended_sessions == (1 if shop.engine == "mysql" else 2)
            await asyncio.sleep(0.05)
            assert real.ended is not None
            assert reason(real.ended) == "STALE_EPOCH"
            assert (await recall(real)).attached_epoch == 0, "fenced, so its stream has ended"
            assert told(await recall(real, active, prepared)) == [
                ("NOT_COMMITTED", False, []),
                ("UNDECIDED", True, [3, 7]),
            ]
            new = Coordinator(agent, coordinator_id=real.id, epoch=6)
            new.identity = NEW_LOG
            await new.attach()
            assert (await recall(real)).attached_epoch == 6
            assert (await new.rollback(prepared)).state == ROLLED_BACK
            await new.detach()
            assert (await recall(real)).attached_epoch == 0
            await new.channel.close()
        assert v(shop, 2) == before

    asyncio.run(play())
