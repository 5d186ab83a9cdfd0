"""Admin: the operators' gRPC service."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import structlog

from coordinator import convert
from coordinator.agents import AgentLink, LinkDown, scanned, xids
from coordinator.core import inputs
from coordinator.core.reconcile import Action, PlanItem
from coordinator.core.states import ParticipantState, State
from coordinator.runtime import Runtime
from coordinator.service import CoordinatorService
from coordinator.v1 import admin_pb2 as pb
from coordinator.v1 import admin_pb2_grpc as rpc
from coordinator.validation import gtrid as valid_gtrid
from coordinator.validation import one_line
from coordinator.version import VERSION
from dtp import Decision, Outcome, Reason, XacoordError, Xid
from participant_agent.v1.participant_agent_pb2 import EVIDENCE_STATE_COMMITTED
from shell.text import clean

_APPLY_SECONDS = 5.0
_MAX_REASON = 500
_MAX_OPERATOR = 100
_MAX_LISTED = 5
_ACTIONS = {"commit": Decision.COMMIT, "rollback": Decision.ROLLBACK}

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(rpc.AdminServicer):
    """What operators call."""

    def __init__(self, runtime: Runtime, service: CoordinatorService) -> None:
        self._runtime = runtime
        self._driver = runtime.driver
        self._core = runtime.driver.core
        self._service = service
        self._log = structlog.get_logger()

    async def Recover(self, request: pb.RecoverRequest, context: Context) -> pb.RecoverResponse:
        """Plan, and with `apply` act."""
        for name in request.participants:
            if name not in self._driver.links:
                raise XacoordError(Reason.UNKNOWN_PARTICIPANT, f"there is no participant {name[:64]!r}")
        names = list(request.participants) or list(self._driver.links)
        return await recover(self._runtime, names, request.apply)

    async def Resolve(self, request: pb.ResolveRequest, context: Context) -> pb.ResolveResponse:
        """An operator's request about one transaction."""
        gtrid = valid_gtrid(request.gtrid, self._core.settings.coordinator_id)
        action = _ACTIONS.get(request.action)
        if action is None:
            raise XacoordError(Reason.INVALID_REQUEST, 'action must be "commit" or "rollback"')
        reason = one_line(request.reason, "reason", 1, _MAX_REASON)
        operator = one_line(request.operator, "operator", 0, _MAX_OPERATOR) or "unknown"
        self._log.warning("resolve", gtrid=gtrid, action=action.value, operator=operator, reason=reason)
        await self._driver.ask(
            lambda ticket: inputs.ResolveRequested(ticket, gtrid, action, reason, operator), gtrid
        )
        transaction = self._core.open.get(gtrid) or self._core.ended[gtrid]
        return pb.ResolveResponse(transaction=self._service.message(transaction))

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        """Drop a heuristic outcome, unless a witness row that contradicts it would be left behind."""
        gtrid = valid_gtrid(request.gtrid, self._core.settings.coordinator_id)
        await self._refuse_false_rows(gtrid)
        self._log.warning("forget", gtrid=gtrid)
        await self._driver.ask(lambda ticket: inputs.ForgetRequested(ticket, gtrid), gtrid)
        return pb.ForgetResponse()

    async def _refuse_false_rows(self, gtrid: str) -> None:
        """A row of a branch that others committed: once all is forgotten, Get would read it as a proof.

        Where they committed every branch it is one; what is not heuristic the core refuses.
        """
        transaction = self._core.open.get(gtrid)
        if transaction is None or transaction.state is not State.HEURISTIC:
            return
        if transaction.decision is Decision.COMMIT or transaction.outcome is Outcome.HEURISTIC_COMMIT:
            return
        found = []
        for branch in transaction.branches.values():
            link = self._driver.links.get(branch.participant)
            if branch.outcome is not Outcome.HEURISTIC_COMMIT or link is None:
                continue
            try:
                evidence = await link.lookup(gtrid)
            except (LinkDown, grpc.aio.AioRpcError) as error:
                raise XacoordError(
                    Reason.PARTICIPANT_UNAVAILABLE,
                    f"{branch.participant} does not tell whether it still has the witness row of the branch "
                    "that was committed against the decision; forget it when the participant is back",
                    gtrid=gtrid,
                ) from error
            if evidence == EVIDENCE_STATE_COMMITTED:
                bqual = Xid.of(gtrid, branch.number).bqual.decode("ascii")
                where = f"gtrid = '{gtrid}' AND bqual = '{bqual}'"
                found.append(f"at {branch.participant}: DELETE FROM xacoord.witness WHERE {where}")
        if found:
            raise XacoordError(
                Reason.DECISION_CONTRADICTED,
                "it is decided to roll back, but a witness row says that it committed, and would be believed "
                "when this is forgotten; make the databases agree with the decision, delete the row, and "
                f"repeat it; {'; '.join(found[:_MAX_LISTED])} (xacoord: the agent's mysql.schema)",
                gtrid=gtrid,
            )

    async def Participants(
        self, request: pb.ParticipantsRequest, context: Context
    ) -> pb.ParticipantsResponse:
        """How the coordinator is with each participant."""
        now = self._driver.clock()
        doubts = self._core.doubts()
        response = pb.ParticipantsResponse()
        for name, participant in self._core.participants.items():
            link = self._driver.links.get(name)
            response.participants.add(
                participant=name,
                number=participant.number,
                address=link.address if link else "",
                state=participant.state.value,
                last_error=participant.last_error if link else "not in the configuration",
                in_doubt=doubts[name].branches,
                orphans=doubts[name].orphans,
                foreign=participant.foreign,
                blocked_sessions=participant.blocked_sessions,
                server=participant.server,
                witness=participant.witness,
                scanned_seconds_ago=-1.0 if participant.scanned_at is None else now - participant.scanned_at,
            )
        return response

    async def LogStatus(self, request: pb.LogStatusRequest, context: Context) -> pb.LogStatusResponse:
        """The log and the coordinator's readiness."""
        status = self._runtime.journal.status()
        reason = self._runtime.not_ready
        open_ = self._core.open.values()
        return pb.LogStatusResponse(
            directory=status.directory,
            identity=status.identity,
            epoch=status.epoch,
            next_lsn=status.next_lsn,
            durable_lsn=status.durable_lsn,
            segments=status.segments,
            bytes=status.bytes,
            reserved_bytes=status.reserved,
            room=status.room_ok,
            last_flush_seconds=status.last_flush_seconds,
            ready=not reason,
            not_ready_reason=reason,
            coordinator_id=self._core.settings.coordinator_id,
            active_transactions=len(open_),
            blocked_transactions=sum(self._core.blocked(t) for t in open_),
            version=VERSION,
        )


async def recover(runtime: Runtime, names: list[str], apply: bool) -> pb.RecoverResponse:
    """Scan, plan and, with `apply`, reconcile now instead of at the next periodic scan."""
    results = await asyncio.gather(*(_scan(runtime, runtime.driver.links[name], apply) for name in names))
    response = pb.RecoverResponse()
    items: list[PlanItem] = []
    for name, plan, error in results:
        response.scans.add(participant=name, scanned=not error, error=error)
        items += plan
    if apply:
        await _wait_until_done(runtime, items)
    response.items.extend(convert.plan_items(items, lambda item: _result(runtime, item) if apply else ""))
    return response


async def _scan(runtime: Runtime, link: AgentLink, apply: bool) -> tuple[str, list[PlanItem], str]:
    driver, name = runtime.driver, link.participant
    number, started_at = link.link, driver.clock()
    is_up = driver.core.is_up(name)
    try:
        found = await link.inspect(driver.core.epoch if is_up else 0)
        prepared = xids(found)
    except LinkDown as error:
        return name, [], str(error)
    except grpc.aio.AioRpcError as error:
        return name, [], clean(f"{error.code().name}: {error.details()}")
    state = driver.core.participants[name].state
    if state not in (ParticipantState.UP, ParticipantState.HOLD):
        return name, [], f"the participant is {state.value}; what is prepared there is not yet sure"
    plan = driver.core.plan(name, prepared)
    if apply and is_up:
        driver.submit(scanned(name, number, started_at, found))
        driver.submit(inputs.RecoveryRequested(name))
    return name, plan, ""


async def _wait_until_done(runtime: Runtime, items: list[PlanItem]) -> None:
    acted_on = [item for item in items if item.action in (Action.COMMIT, Action.ROLLBACK)]
    deadline = asyncio.get_running_loop().time() + _APPLY_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if all(_result(runtime, item) == "done" for item in acted_on):
            return
        await asyncio.sleep(0.02)


def _result(runtime: Runtime, item: PlanItem) -> str:
    transaction = runtime.driver.core.open.get(item.xid.gtrid.decode("latin-1"))
    branch = transaction.branches.get(item.participant) if transaction else None
    return "retrying" if branch is not None and branch.open else "done"
