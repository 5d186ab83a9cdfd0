"""Commands: how a coordinator's command, on whichever way it has come, is checked and begun.

What cannot be carried out is answered, not thrown: the coordinator waits for a report about that branch.
"""

from __future__ import annotations

from collections.abc import Callable

from dtp import Gtrid, Reason, Vote, XacoordError
from participant_agent import values
from participant_agent.branches import Branches
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, SessionUse, State
from participant_agent.core.registry import Command
from participant_agent.core.work import Voted
from participant_agent.link import Link

_WORK = ("run", "prepare")


def carry_out(
    branches: Branches, link: Link, gtrid: str, verb: str, one_phase: bool, read: Callable[[], Command]
) -> None:
    """Begin a command; it is not waited for.

    Args:
        link: whose command it is.
        verb: "run", "prepare", "commit" or "rollback".
        one_phase: of a run.
        read: makes the command; may raise XacoordError.
    """
    try:
        id_ = Gtrid.parse(gtrid)
        if id_.coordinator_id != link.coordinator_id:
            raise XacoordError(Reason.INVALID_GTRID, "the branch belongs to another coordinator")
        _check_epoch(id_.epoch, link.epoch, verb)
        command = read()
    except XacoordError as error:
        link.report(gtrid, _refused(verb, one_phase, values.refusal(error)))
        return
    branches.command(gtrid, link.coordinator_id, link.epoch, command)


def _check_epoch(epoch: int, of_stream: int, verb: str) -> None:
    """Work belongs to the stream's own epoch; branches of earlier ones are only finished."""
    if epoch > of_stream:
        raise XacoordError(Reason.UNKNOWN_EPOCH, f"epoch {epoch} is not the stream's, {of_stream}")
    if epoch < of_stream and verb in _WORK:
        raise XacoordError(Reason.STALE_EPOCH, f"epoch {epoch} is over: the stream's is {of_stream}")


def _refused(verb: str, one_phase: bool, why: Failure) -> Voted | Finished:
    """The answer to a command that is not carried out. A Run that cannot be read was never started; of one
    for another epoch this cannot be said."""
    of_epoch = why.reason not in (Reason.STALE_EPOCH, Reason.UNKNOWN_EPOCH)
    if verb == "run" and one_phase and of_epoch:
        return Finished(State.ROLLED_BACK, SessionUse.CLOSE, why)
    if verb == "prepare" or (verb == "run" and not one_phase):
        return Voted(Vote.ROLLBACK, SessionUse.CLOSE, why)
    return Finished(State.RETRY, SessionUse.CLOSE, why)
