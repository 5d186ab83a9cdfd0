"""The link to an agent: what goes over it, in which order, and what outlives the connection: nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc.aio import _call

from coordinator.agents import LinkDown
from coordinator.core import effects, inputs
from dtp import Outcome, Reason, Vote, XacoordError, Xid
from participant_agent.v1 import participant_agent_pb2 as pb
from tests.coordinator.agent_bench import Bench, gtrid, run, until


def commit(counter: int) -> effects.Send:
    return effects.Send("p", gtrid(counter), effects.Commit())


def sent(bench: Bench) -> list[str]:
    """The transactions of all commands that have arrived, in order."""
    return [command.gtrid for message in bench.agent.messages() for command in message.commands]


def test_fence_then_attach_then_scan() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        assert bench.told == [inputs.AgentConnected("p", 1)]
        assert bench.agent.heard == [], "nothing is sent before the core asks for it"
        bench.link.fence(effects.Fence("p", 4, 1))
        await until(lambda: len(bench.told) == 2)
        assert bench.told[1] == inputs.AgentFenced("p", 1, "mysql 8", True, "db:1", "")
        (fence,) = bench.agent.heard
        assert (fence.coordinator_id, fence.epoch, fence.number) == ("test", 3, 4)
        assert (fence.participant, fence.log_identity) == ("p", b"L" * 16)
        assert [(e.epoch, e.nonce) for e in fence.history] == [(1, 7), (2, 8), (3, 9)]
        xid = Xid.of(gtrid(1), 4)
        bench.agent.prepared = [pb.PreparedXid(format_id=xid.format_id, gtrid=xid.gtrid, bqual=xid.bqual)]
        await bench.attach()
        bench.link.scan(effects.Scan("p", 1, fenced=True))
        bench.link.send(commit(1))
        await until(lambda: len(bench.told) == 3 and bool(sent(bench)))
        assert bench.told[2] == inputs.AgentScanned("p", 1, 50.0, (xid,), 1, 2)
        hello, *_ = [m for m in bench.agent.heard if isinstance(m, pb.AttachRequest)]
        assert (hello.hello.coordinator_id, hello.hello.epoch) == ("test", 3)
        assert hello.hello.log_identity == b"L" * 16
        assert not hello.commands, "commands come after the greeting"
        (scan,) = [m for m in bench.agent.heard if isinstance(m, pb.ScanRequest)]
        assert scan.epoch == 3

    run(test)


def test_a_scan_of_an_agent_that_is_not_fenced_only_inspects() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.link.scan(effects.Scan("p", 1, fenced=False))
        await until(lambda: len(bench.told) == 2)
        assert bench.agent.heard[0].epoch == 0

    run(test)


HOLD = (Reason.STALE_EPOCH, Reason.LOG_IDENTITY_CHANGED, Reason.PARTICIPANT_MISMATCH)


@pytest.mark.parametrize("reason", [*HOLD, Reason.SERVER_UNAVAILABLE, Reason.INTERNAL])
def test_a_refused_fence_is_a_hold_only_for_these_reasons(reason: Reason) -> None:
    async def test(bench: Bench) -> None:
        bench.agent.fence_error = XacoordError(reason, "no\x1b")
        await bench.connect()
        bench.link.fence(effects.Fence("p", 4, 1))
        await until(lambda: len(bench.told) >= 2)
        answer = bench.told[1]
        if reason in HOLD:
            assert isinstance(answer, inputs.AgentHeld)
            assert (answer.participant, answer.link, answer.reason) == ("p", 1, reason)
            assert answer.message.startswith("no")
            assert "\x1b" not in answer.message
        else:
            assert isinstance(answer, inputs.AgentLost)
            assert answer.link == 1

    run(test)


def test_what_an_agent_says_of_itself_is_checked() -> None:
    async def test(bench: Bench) -> None:
        bench.agent.response = pb.FenceResponse(
            last_committed="'; DROP", server=pb.ServerInfo(engine="x" * 999)
        )
        await bench.connect()
        bench.link.fence(effects.Fence("p", 4, 1))
        await until(lambda: len(bench.told) == 2)
        (fenced,) = bench.answers(inputs.AgentFenced)
        assert fenced.last_committed == ""
        assert fenced.address == bench.link.address, "where it names none"
        assert len(fenced.server) <= 128
        bench.agent.response = pb.FenceResponse(last_committed=gtrid(5))
        bench.link.fence(effects.Fence("p", 4, 1))
        await until(lambda: len(bench.told) == 3)
        assert bench.answers(inputs.AgentFenced)[1].last_committed == gtrid(5)

    run(test)


# Commands


class SlowCall:
    """A stream whose writes take until the test ends them."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.done = asyncio.Semaphore(0)

    async def write(self, message: pb.AttachRequest) -> None:
        self.written.append([command.gtrid for command in message.commands])
        await self.done.acquire()


def test_commands_that_gather_while_a_message_is_written_go_out_in_one() -> None:
    async def test(bench: Bench) -> None:
        call = SlowCall()
        writer = asyncio.create_task(bench.link._write(call))
        bench.link.send(commit(1))
        await until(lambda: len(call.written) == 1)
        for counter in range(2, 12):
            bench.link.send(commit(counter))
            await asyncio.sleep(0)
        assert len(call.written) == 1, "one at a time"
        call.done.release()
        await until(lambda: len(call.written) == 2)
        assert call.written == [[gtrid(1)], [gtrid(counter) for counter in range(2, 12)]]
        call.done.release()
        await asyncio.sleep(0.01)
        assert len(call.written) == 2, "nothing is left to be written"
        writer.cancel()

    run(test)


def test_a_burst_is_one_message_and_the_next_burst_another() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        for first in (1, 11, 21):
            for counter in range(first, first + 10):
                bench.link.send(commit(counter))
            await until(lambda first=first: len(sent(bench)) == first + 9)
        assert [len(message.commands) for message in bench.agent.messages()] == [10, 10, 10]

    run(test)


def test_the_purge_mark_goes_along_when_it_has_moved() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        for count, mark in enumerate(("", "m1", "m1", "m2"), 1):
            bench.mark = mark
            bench.link.send(commit(count))
            await until(lambda count=count: len(sent(bench)) == count)
        assert [message.purge_below for message in bench.agent.messages()] == ["", "m1", "", "m2"]

    run(test)


COMMANDS: list[tuple[effects.Command, pb.Command]] = [
    (effects.Prepare((1, 2)), pb.Command(prepare=pb.Prepare(participants=[1, 2]))),
    (effects.Commit(), pb.Command(commit=pb.Commit())),
    (effects.Commit(one_phase=True), pb.Command(commit=pb.Commit(one_phase=True))),
    (effects.Rollback(), pb.Command(rollback=pb.Rollback())),
    (
        effects.Rollback(effects.Rejection(Reason.DEADLOCK, "a circle", "q")),
        pb.Command(rollback=pb.Rollback(reason="DEADLOCK", message="a circle")),
    ),
    (
        effects.Enlisted(True, None, 1.5),
        pb.Command(enlisted=pb.Enlisted(accepted=True, remaining_milliseconds=1500)),
    ),
    (
        effects.Enlisted(False, Reason.BRANCH_LOST, 0.0),
        pb.Command(enlisted=pb.Enlisted(reason="BRANCH_LOST")),
    ),
    (
        effects.Run(inputs.RunBranch("p", [], True), (1,), 0.0, True),
        pb.Command(run=pb.Run(read_only=True, participants=[1], remaining_milliseconds=1, one_phase=True)),
    ),
]


def test_every_command_arrives_as_what_it_is() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        for command, _ in COMMANDS:
            bench.link.send(effects.Send("p", gtrid(1), command))
        await until(lambda: len(sent(bench)) == len(COMMANDS))
        arrived = [command for message in bench.agent.messages() for command in message.commands]
        for found, (_, expected) in zip(arrived, COMMANDS, strict=True):
            expected.gtrid = gtrid(1)
            assert found == expected

    run(test)


def test_waits_are_told_as_a_whole_and_what_names_nothing_of_our_shape_is_left_out() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        link = await bench.attach()
        told = [
            pb.Wait(gtrid=gtrid(1), blocker=gtrid(2), connection_id=17, account="a\nb@host"),
            pb.Wait(gtrid=gtrid(1), prepared=True),
            pb.Wait(gtrid=gtrid(1), blocker="not one of ours"),
            pb.Wait(gtrid="", blocker=gtrid(2)),
        ]
        for waits in (told, []):
            bench.agent.streams[-1].put_nowait(pb.AttachResponse(waits=pb.Waits(waits=waits)))
        await until(lambda: len(bench.answers(inputs.WaitsReported)) == 2)
        kept = (
            inputs.Wait(gtrid(1), gtrid(2), False, 17, "a b@host"),
            inputs.Wait(gtrid(1), prepared=True),
        )
        assert bench.answers(inputs.WaitsReported) == [
            inputs.WaitsReported("p", link, kept),
            inputs.WaitsReported("p", link, ()),
        ]

    run(test)


def test_more_waits_than_an_agent_may_tell_are_cut() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        many = [pb.Wait(gtrid=gtrid(1), connection_id=n) for n in range(1, 6_000)]
        bench.agent.streams[-1].put_nowait(pb.AttachResponse(waits=pb.Waits(waits=many)))
        await until(lambda: bool(bench.answers(inputs.WaitsReported)))
        assert len(bench.answers(inputs.WaitsReported)[0].waits) == 5_000

    run(test)


# Links that break


@pytest.mark.parametrize("attached", [True, False])
def test_no_command_of_a_broken_link_reaches_the_next(attached: bool) -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        if attached:
            await bench.attach()
        await bench.agent.stop()
        bench.link.send(commit(1))  # the core does not know yet that the link is broken
        if not attached:
            bench.link.scan(effects.Scan("p", 1, fenced=True))
        bench.link.send(commit(2))
        await until(lambda: bool(bench.answers(inputs.AgentLost)))
        await bench.agent.start(bench.agent.port)
        await bench.connect(2)
        await bench.attach()
        bench.link.send(commit(3))
        await until(lambda: bool(sent(bench)))
        assert sent(bench) == [gtrid(3)]

    run(test)


def test_a_link_that_breaks_is_told_once_and_comes_again_with_a_new_number() -> None:
    async def test(bench: Bench) -> None:
        for number in (1, 2, 3):
            await bench.connect(number)
            assert await bench.attach() == number
            bench.agent.streams[-1].put_nowait(None)
            await until(lambda number=number: len(bench.answers(inputs.AgentLost)) == number)
        assert [(type(event).__name__, event.link) for event in bench.told[:6]] == [  # type: ignore[union-attr]
            (kind, number) for number in (1, 2, 3) for kind in ("AgentConnected", "AgentLost")
        ]

    run(test)


def test_a_write_on_a_stream_that_has_just_ended_is_an_ordinary_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()

        async def too_late(self: object, request: object) -> None:
            bench.agent.streams[-1].put_nowait(None)
            raise asyncio.InvalidStateError("RPC already finished.")

        monkeypatch.setattr(_call.StreamStreamCall, "write", too_late)
        bench.link.send(commit(1))
        await until(lambda: bool(bench.answers(inputs.AgentLost)))
        (lost,) = bench.answers(inputs.AgentLost)
        assert lost.error == "the agent closed the stream"

    run(test)


def test_an_agent_that_is_away_is_tried_until_it_is_there() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        await bench.agent.stop()
        await until(lambda: bool(bench.answers(inputs.AgentLost)))
        with pytest.raises(LinkDown, match="no agent answers"):
            await bench.link.inspect()
        with pytest.raises(LinkDown, match="no agent answers"):
            await bench.link.lookup(gtrid(1))
        await bench.agent.start(bench.agent.port)
        await bench.connect(2)
        assert bench.link.link > 1
        await bench.link.inspect()

    run(test)


# Reports


def reports() -> list[tuple[pb.Report, inputs.Input]]:
    """Each kind of report and what the core is told, on link 7."""
    g, no = gtrid(1), pb.Failure(reason="DEADLOCK", message="a\nb", errno=1213, statement=0)
    deadlock = inputs.Failure(Reason.DEADLOCK, "a b", 1213, 0)
    table: list[tuple[pb.Report, inputs.Input]] = [
        (pb.Report(gtrid=g, enlist=pb.Enlist()), inputs.BranchEnlisted("p", 7, g)),
        (
            pb.Report(gtrid=g, voted=pb.Voted(vote=pb.VOTE_ROLLBACK, failure=no)),
            inputs.BranchVoted("p", 7, g, Vote.ROLLBACK, deadlock, []),
        ),
        (
            pb.Report(gtrid=g, voted=pb.Voted(vote=pb.VOTE_READ_ONLY)),
            inputs.BranchVoted("p", 7, g, Vote.READ_ONLY, None, []),
        ),
        (
            pb.Report(gtrid=g, finished=pb.Finished(state=pb.FINISHED_STATE_RETRY, failure=no)),
            inputs.BranchFinished("p", 7, g, None, deadlock, []),
        ),
        (
            pb.Report(gtrid=g, finished=pb.Finished()),
            inputs.BranchFinished("p", 7, g, None, None, []),
        ),
    ]
    ends = {
        pb.FINISHED_STATE_COMMITTED: Outcome.COMMITTED,
        pb.FINISHED_STATE_ROLLED_BACK: Outcome.ROLLED_BACK,
        pb.FINISHED_STATE_HEURISTIC_COMMIT: Outcome.HEURISTIC_COMMIT,
        pb.FINISHED_STATE_HEURISTIC_ROLLBACK: Outcome.HEURISTIC_ROLLBACK,
        pb.FINISHED_STATE_HEURISTIC_HAZARD: Outcome.HEURISTIC_HAZARD,
    }
    for state, outcome in ends.items():
        report = pb.Report(gtrid=g, finished=pb.Finished(state=state))
        table.append((report, inputs.BranchFinished("p", 7, g, outcome, None, [])))
    return table


def plain(event: Any) -> Any:
    """The event with its results as a list, to compare."""
    fields = {name: getattr(event, name) for name in event.__slots__}
    return type(event), {n: list(v) if n == "results" else v for n, v in fields.items()}


def test_reports_carry_the_number_of_the_link_that_they_came_over() -> None:
    """It is the core that drops late news of an old link: it can only do so by their number."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.link.attach(effects.Attach("p", 7))
        await until(lambda: bool(bench.agent.streams))
        table = reports()
        bench.agent.streams[0].put_nowait(pb.AttachResponse(reports=[report for report, _ in table]))
        await until(lambda: len(bench.told) == 1 + len(table))
        for found, (_, expected) in zip(bench.told[1:], table, strict=True):
            assert plain(found) == plain(expected)
        bench.link.fence(effects.Fence("p", 4, 6))
        bench.link.scan(effects.Scan("p", 5, fenced=True))
        await until(lambda: len(bench.told) == 3 + len(table))
        assert {(type(e), e.link) for e in bench.told[-2:]} == {  # type: ignore[union-attr]
            (inputs.AgentFenced, 6),
            (inputs.AgentScanned, 5),
        }

    run(test)


def test_a_failure_of_an_older_link_does_not_break_the_present_one() -> None:
    async def test(bench: Bench) -> None:
        bench.agent.fence_error = XacoordError(Reason.SERVER_UNAVAILABLE, "no")
        await bench.connect()
        bench.link.fence(effects.Fence("p", 4, 0))
        await until(lambda: len(bench.agent.heard) == 1)
        await bench.link.inspect()
        assert not bench.answers(inputs.AgentLost)

    run(test)


def test_an_agent_cannot_use_words_that_are_the_coordinators() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        await bench.attach()
        for reason in ("OUTCOME_UNKNOWN", "LOG_FAILED", "INTERNAL", "gibberish"):
            voted = pb.Voted(vote=pb.VOTE_ROLLBACK, failure=pb.Failure(reason=reason))
            report = pb.Report(gtrid=gtrid(1), voted=voted)
            bench.agent.streams[0].put_nowait(pb.AttachResponse(reports=[report, pb.Report(gtrid="short")]))
        await until(lambda: len(bench.answers(inputs.BranchVoted)) == 4)
        assert {v.failure.reason for v in bench.answers(inputs.BranchVoted)} == {Reason.PREPARE_FAILED}
        empty = pb.Report(gtrid=gtrid(1), voted=pb.Voted())
        bench.agent.streams[0].put_nowait(pb.AttachResponse(reports=[empty]))
        await until(lambda: bool(bench.answers(inputs.AgentLost)))

    run(test)


def test_evidence_about_another_transaction_is_no_evidence() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        committed = pb.EVIDENCE_STATE_COMMITTED
        for wrong in ([], [(gtrid(2), committed)], [(gtrid(1), committed)] * 2):
            bench.agent.evidence = [pb.Evidence(gtrid=g, state=s) for g, s in wrong]
            with pytest.raises(LinkDown, match="another transaction"):
                await bench.link.lookup(gtrid(1))
        bench.agent.evidence = [pb.Evidence(gtrid=gtrid(1), state=committed)]
        assert await bench.link.lookup(gtrid(1)) == committed

    run(test)
