"""Local: the link to an agent of this process. Commands and reports are handed over as they are.

What a link over the network encodes, sends, and decodes is here one call in each direction. The order is the
same: commands in the order of their effects, reports in the order in which branches end. Reports are handed
over with the event loop's next round, because the coordinator may be in the middle of a step.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from coordinator.agents import AgentLink, Identity, enlisted_message, failure_of, waits_of
from coordinator.core import effects, inputs
from dtp import Outcome, Vote, XacoordError
from participant_agent import values
from participant_agent.commands import carry_out
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, State
from participant_agent.core.registry import Command, Commit, Prepare, Rollback, Run
from participant_agent.core.work import Voted
from participant_agent.link import Link, failure_message
from participant_agent.v1 import participant_agent_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from coordinator.embedded import EmbeddedAgent
    from participant_agent.agent import Agent

# Both say it in the same words; RETRY is no outcome.
_OUTCOMES = {state: Outcome.__members__.get(state.name) for state in State}

Reported: TypeAlias = tuple[str, Voted | Finished] | pb.Report | pb.Waits


class AgentEnd(Link):
    """The agent's end of the link.

    Args:
        hear: takes reports, in their order.
        ended: called when the agent closes the link.
    """

    def __init__(
        self,
        coordinator_id: str,
        epoch: int,
        hear: Callable[[Reported], None],
        ended: Callable[[XacoordError], None],
    ) -> None:
        super().__init__(coordinator_id, epoch)
        self._hear = hear
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._reported: list[Reported] = []

    def report(self, gtrid: str, result: Voted | Finished) -> None:
        """Tell what became of a branch."""
        self._tell((gtrid, result))

    def put(self, report: pb.Report) -> None:
        """Tell anything else of a branch."""
        self._tell(report)

    def put_waits(self, waits: pb.Waits) -> None:
        """Tell who waits, behind what was reported."""
        self._tell(waits)

    def _tell(self, reported: Reported) -> None:
        if self.closed is not None:
            return
        if not self._reported:
            self._loop.call_soon(self._hand_over)
        self._reported.append(reported)

    def _hand_over(self) -> None:
        reported, self._reported = self._reported, []
        for one in reported:
            if self.closed is None:
                self._hear(one)

    def close(self, error: XacoordError) -> None:
        """End the link."""
        if self.closed is None:
            super().close(error)
            self._ended(error)


class LocalLink(AgentLink):
    """A link to an embedded agent."""

    def __init__(
        self,
        embedded: EmbeddedAgent,
        identity: Identity,
        submit: Callable[[inputs.Input], None],
        clock: Callable[[], float],
        purge_mark: Callable[[], str],
    ) -> None:
        super().__init__(
            embedded.participant, embedded.address, identity, submit, clock, purge_mark, embedded.connect
        )
        self._embedded = embedded
        self._end: AgentEnd | None = None

    @property
    def _agent(self) -> Agent:
        assert self._embedded.host is not None
        return self._embedded.host.agent

    def attach(self, effect: effects.Attach) -> None:
        """Open the way for commands."""
        identity, link = self._identity, effect.link
        hello = pb.Hello(
            coordinator_id=identity.coordinator_id, epoch=identity.epoch, log_identity=identity.log_identity
        )

        def ended(error: XacoordError) -> None:
            self._break(link, f"{error.reason.value}: {error.message}")

        try:
            self._end = self._agent.attach(
                hello, lambda id_, epoch: AgentEnd(id_, epoch, lambda one: self._hear(link, one), ended)
            )
        except XacoordError as error:
            ended(error)

    async def _disconnect(self, channel: grpc.aio.Channel) -> None:
        end, self._end = self._end, None
        if end is not None:
            self._agent.detach(end)
        await super()._disconnect(channel)

    def send(self, effect: effects.Send) -> None:
        """Hand over one command."""
        end = self._end
        if end is None or end.closed is not None:
            return  # the core is about to hear that the link is broken
        try:
            self._purge()
            self._hand_over(end, effect)
        except Exception as error:  # the agent's; the coordinator's step goes on
            self._log.exception("the agent in this process failed")
            self._break(self._link, f"{type(error).__name__}: {error}")

    def _purge(self) -> None:
        mark = self._purge_mark()
        if mark != self._purged:
            self._purged = mark
            self._agent.purge_below(self._identity.coordinator_id, mark)

    def _hand_over(self, end: AgentEnd, effect: effects.Send) -> None:
        command = effect.command
        if isinstance(command, effects.Enlisted):
            end.enlisted(effect.gtrid, enlisted_message(command))
            return
        one_phase = isinstance(command, effects.Run) and command.one_phase
        agent = self._agent

        def read() -> Command:
            match command:
                case effects.Run():
                    statements = values.read_statements(command.branch.payload, *agent.reading)
                    return Run(
                        statements,
                        command.branch.read_only,
                        command.participants,
                        command.remaining_seconds,
                        command.one_phase,
                    )
                case effects.Prepare():
                    return Prepare(command.participants)
                case effects.Commit():
                    return Commit(command.one_phase)
                case effects.Rollback():
                    why = command.why
                    return Rollback(why=Failure(why.reason, why.message) if why else None)

        carry_out(agent.branches, end, effect.gtrid, _VERBS[type(command)], one_phase, read)

    def _hear(self, link: int, reported: Reported) -> None:
        if isinstance(reported, pb.Report):
            self._report(link, reported)
            return
        name = self.participant
        if isinstance(reported, pb.Waits):
            self._submit(inputs.WaitsReported(name, link, waits_of(reported)))
            return
        gtrid, result = reported
        results = [values.result_message(ok) for ok in result.results]
        if isinstance(result, Voted):
            why = _failure(result.failure) if result.vote is Vote.ROLLBACK else None
            event: inputs.Input = inputs.BranchVoted(
                name, link, gtrid, result.vote, why, results, result.in_doubt
            )
        else:
            why = _failure(result.failure)
            event = inputs.BranchFinished(name, link, gtrid, _OUTCOMES[result.state], why, results)
        self._submit(event)


_VERBS: dict[type, str] = {
    effects.Run: "run",
    effects.Prepare: "prepare",
    effects.Commit: "commit",
    effects.Rollback: "rollback",
}


def _failure(failure: Failure | None) -> inputs.Failure | None:
    message = failure_message(failure)
    return None if message is None else failure_of(message)
