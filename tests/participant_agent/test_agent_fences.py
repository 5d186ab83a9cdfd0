"""Fences, streams and epochs: who may command an agent."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from deploy.private_servers import PrivateServer
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.participant_agent.agent_support import (
    RETRY,
    ROLLED_BACK,
    AgentProcess,
    Coordinator,
    bump,
    coordinating,
    history,
    info,
    reason,
    v,
    waits_for_a_lock,
)


def test_fence_refuses_what_disagrees(agent: AgentProcess) -> None:
    async def play() -> None:
        c = Coordinator(agent, epoch=5)
        answer = await c.fence()
        assert answer.server.witness
        await c.fence()  # idempotent
        for changes, expected in (
            ({"epoch": 4}, "STALE_EPOCH"),
            ({"log_identity": b"f" * 16}, "LOG_IDENTITY_CHANGED"),
            ({"log_identity": b"f" * 16, "epoch": 9}, "LOG_IDENTITY_CHANGED"),
            ({"number": 8, "epoch": 9}, "PARTICIPANT_MISMATCH"),
            ({"participant": "other"}, "PARTICIPANT_MISMATCH"),
            ({"epoch": 0}, "INVALID_REQUEST"),
            ({"epoch": 36**4}, "INVALID_REQUEST"),
            ({"log_identity": b"short"}, "INVALID_REQUEST"),
            ({"coordinator_id": "A'; "}, "INVALID_REQUEST"),
            ({"number": 36**4}, "INVALID_REQUEST"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                await c.fence(**changes)
            assert reason(refused.value) == expected, changes
        c.epoch = 6
        await c.fence()
        await c.channel.close()

    asyncio.run(play())


def test_higher_fence_ends_lower_epochs_of_this_coordinator_only(
    agent: AgentProcess, shop: PrivateServer
) -> None:
    async def play() -> None:
        async with coordinating(agent) as old, coordinating(agent) as stranger:
            active, prepared, others = old.gtrid(), old.gtrid(), stranger.gtrid()
            await old.execute(active, bump(1))
            assert (await old.run(prepared, bump(2))).vote == pb.VOTE_OK
            await stranger.execute(others, bump(3))
            new = Coordinator(agent, coordinator_id=old.id, epoch=2)
            answer = await new.fence()
            assert answer.ended_sessions == (1 if shop.engine == "mysql" else 2)
            await asyncio.sleep(0.05)
            assert old.ended is not None
            assert reason(old.ended) == "STALE_EPOCH"
            with pytest.raises(grpc.RpcError) as stale:
                await old.execute(old.gtrid(), bump(1))
            assert reason(stale.value) == "STALE_EPOCH"
            with pytest.raises(grpc.RpcError) as unknown:
                await old.execute(old.gtrid(epoch=9), bump(1))
            assert reason(unknown.value) == "UNKNOWN_EPOCH"
            await new.attach()
            assert await new.prepared() == {prepared}
            probe = new.gtrid()
            assert (await new.run(probe, bump(1), seconds=0.5)).vote == pb.VOTE_OK
            assert (await new.rollback(probe)).state == ROLLED_BACK
            assert (await new.rollback(prepared)).state == ROLLED_BACK
            assert (await stranger.prepare(others)).vote == pb.VOTE_OK
            assert (await stranger.rollback(others)).state == ROLLED_BACK
            await new.detach()
            await new.channel.close()

    asyncio.run(play())


def test_fences_race(agent: AgentProcess) -> None:
    """However many raise at once, the highest stays."""

    async def play() -> None:
        coordinators = [Coordinator(agent, "race", epoch) for epoch in range(1, 13)]
        results = await asyncio.gather(*(c.fence() for c in coordinators), return_exceptions=True)
        assert not isinstance(results[-1], BaseException)
        for c, result in zip(coordinators, results, strict=True):
            if isinstance(result, grpc.RpcError):
                assert reason(result) == "STALE_EPOCH"
            with pytest.raises(grpc.RpcError) if c.epoch < 12 else contextlib.nullcontext():
                await c.fence()
            await c.channel.close()

    asyncio.run(play())


def test_attach_needs_the_fenced_epoch(agent: AgentProcess) -> None:
    async def play() -> None:
        for epoch, identity, expected in (
            (3, b"0123456789abcdef", "STALE_EPOCH"),
            (5, b"0123456789abcdef", "UNKNOWN_EPOCH"),
            (4, b"another identity", "LOG_IDENTITY_CHANGED"),
        ):
            c = Coordinator(agent, epoch=4)
            await c.fence()
            c.epoch, c.identity = epoch, identity
            with contextlib.suppress(grpc.RpcError):
                await c.attach()
            await asyncio.sleep(0.2)
            assert c.ended is not None
            assert reason(c.ended) == expected
            await c.channel.close()
        never = Coordinator(agent)
        call = never.stub.Attach()
        await call.write(pb.AttachRequest(purge_below="x"))
        with pytest.raises(grpc.RpcError) as refused:
            await call.read()
        assert reason(refused.value) == "INVALID_REQUEST"
        await never.channel.close()

    asyncio.run(play())


def test_newer_stream_ends_the_older(agent: AgentProcess) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            again = Coordinator(agent, coordinator_id=c.id)
            await again.attach()
            await asyncio.sleep(0.1)
            assert c.ended is not None
            gtrid = again.gtrid()
            assert (await again.run(gtrid, bump(1))).vote == pb.VOTE_OK
            assert (await again.rollback(gtrid)).state == ROLLED_BACK
            await again.detach()
            await again.channel.close()

    asyncio.run(play())


def test_a_restored_log_is_noticed(agent: AgentProcess, shop: PrivateServer) -> None:
    """It gives the epochs after the backup again with other nonces, and goes beyond."""

    async def play() -> None:
        c = Coordinator(agent, epoch=5)
        await c.fence()
        before = shop.sql("SELECT * FROM xacoord.coordinator WHERE coordinator_id = %s", (c.id,))
        for epoch in (5, 6, 900):
            with pytest.raises(grpc.RpcError) as restored:
                await c.fence(epoch=epoch, history=history(epoch, restored_after=3))
            assert reason(restored.value) == "LOG_IDENTITY_CHANGED"
            assert "restored from a backup" in str(restored.value.details())
            assert info(restored.value).metadata["remembered_epoch"] == "5"
        with pytest.raises(grpc.RpcError) as away_too_long:
            await c.fence(epoch=1006, history=history(5) + history(1006))
        assert reason(away_too_long.value) == "INVALID_REQUEST"
        with pytest.raises(grpc.RpcError) as away_too_long:
            await c.fence(epoch=1007)
        assert reason(away_too_long.value) == "LOG_IDENTITY_CHANGED"
        assert shop.sql("SELECT * FROM xacoord.coordinator WHERE coordinator_id = %s", (c.id,)) == before
        await c.fence(epoch=1005)
        await c.channel.close()

    asyncio.run(play())


def test_work_of_other_epochs_than_the_streams_is_refused(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent, epoch=5) as c:
            before = v(shop, 1)
            for epoch, expected in ((4, "STALE_EPOCH"), (6, "UNKNOWN_EPOCH")):
                gtrid = c.gtrid(epoch)
                voted = await c.run(gtrid, bump(1))
                assert (voted.vote, voted.failure.reason) == (pb.VOTE_ROLLBACK, expected)
                assert (await c.prepare(gtrid)).failure.reason == expected
                finished = await c.run(gtrid, bump(1), one_phase=True)
                assert (finished.state, finished.failure.reason) == (RETRY, expected)
            assert (await c.commit(c.gtrid(6))).failure.reason == "UNKNOWN_EPOCH"
            assert (await c.rollback(c.gtrid(4))).state == ROLLED_BACK
            assert v(shop, 1) == before

    asyncio.run(play())


def test_a_client_that_means_another_participant_is_refused(agent: AgentProcess, shop: PrivateServer) -> None:
    async def play() -> None:
        async with coordinating(agent) as c:
            gtrid = c.gtrid()
            for name, good in (("other", False), (agent.participant, True)):
                request = pb.ExecuteRequest(gtrid=gtrid, statements=[bump(1)], participant=name)
                if good:
                    await c.stub.Execute(request, timeout=10)
                    continue
                with pytest.raises(grpc.RpcError) as refused:
                    await c.stub.Execute(request, timeout=10)
                assert reason(refused.value) == "PARTICIPANT_MISMATCH"
                assert c.enlisted == []
            assert (await c.rollback(gtrid)).state == ROLLED_BACK

    asyncio.run(play())


def test_a_report_reaches_the_newer_stream(agent: AgentProcess, shop: PrivateServer) -> None:
    """A branch waits for a lock while its coordinator's stream breaks and comes back."""

    async def play() -> None:
        async with coordinating(agent) as c:
            holder, gtrid = c.gtrid(), c.gtrid()
            await c.execute(holder, bump(1))
            run = pb.Run(statements=[bump(1)], participants=[7], remaining_milliseconds=9000)
            c.post(gtrid, run=run)
            await waits_for_a_lock(shop)
            again = Coordinator(agent, coordinator_id=c.id)
            await again.attach()
            assert (await again.rollback(holder)).state == ROLLED_BACK
            again.post(gtrid, prepare=pb.Prepare(participants=[7]))  # asked again, it is answered again
            for _ in range(200):
                votes = [report.voted for report in again.reports if report.gtrid == gtrid]
                if len(votes) == 2:
                    break
                await asyncio.sleep(0.02)
            assert [voted.vote for voted in votes] == [pb.VOTE_OK, pb.VOTE_OK]
            assert votes[0].results[0].row_count == 1
            assert (await again.rollback(gtrid)).state == ROLLED_BACK
            await again.detach()
            await again.channel.close()

    asyncio.run(play())
