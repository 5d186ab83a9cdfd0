"""Fences: which coordinators this agent knows, and at which epoch.

What is remembered here is what the table says (core/recovery.py raises it there), and never less: `purged_to`
of a row that was read before a purge began may not undo what the purge has told us since, or the absence of
rows that it deletes would count as proof that their branches did not commit.
"""

from __future__ import annotations

from dataclasses import replace

from dtp import Reason, XacoordError
from dtp.xid import MAX_EPOCH, MAX_PARTICIPANT_NUMBER, is_coordinator_id
from participant_agent.config import Config
from participant_agent.control import Control
from participant_agent.core import recovery
from participant_agent.core.recovery import Fenced, Takeover
from participant_agent.core.resolve import Evidence
from participant_agent.v1 import participant_agent_pb2 as pb

MAX_HISTORY = 1001


class Fences:
    """The fences of one agent."""

    def __init__(self, config: Config, control: Control) -> None:
        self._config = config
        self._control = control
        self._remembered: dict[str, Fenced] = {}

    async def load(self) -> None:
        """Read what the table remembers. Raises XacoordError where the server cannot be asked."""
        loaded = await self._control.drive(
            recovery.load_fences(self._config.mysql.schema, self._config.agent.participant)
        )
        for fence in loaded.values():
            self._learn(await self._mark_unprovable(fence))

    async def _mark_unprovable(self, fence: Fenced) -> Fenced:
        """Where witness rows are off, the absence of one proves nothing from here on, and that must be
        durable."""
        if self._config.witness.enabled:
            return fence
        purged_to = recovery.unprovable_below(fence.coordinator_id, fence.epoch)
        return await self._write(replace(fence, purged_to=purged_to), {fence.epoch: fence.nonce})

    async def _write(
        self, wanted: Fenced, history: dict[int, int], takeover: Takeover | None = None
    ) -> Fenced:
        schema, participant = self._config.mysql.schema, self._config.agent.participant
        return await self._control.drive(recovery.fence(schema, participant, wanted, history, takeover))

    def _learn(self, fence: Fenced) -> None:
        known = self._remembered.get(fence.coordinator_id)
        if known is not None:
            fence = replace(fence, purged_to=max(fence.purged_to, known.purged_to))
        self._remembered[fence.coordinator_id] = fence

    async def raise_to(self, request: pb.FenceRequest) -> None:
        """Remember a coordinator's epoch durably.

        Raises:
            XacoordError: INVALID_REQUEST, or why it is refused (core/recovery.contradiction).
        """
        wanted, history = read_fence(request)
        if request.participant != self._config.agent.participant:
            raise mismatch(self._config.agent.participant)
        if not self._config.witness.enabled:
            wanted = replace(
                wanted, purged_to=recovery.unprovable_below(request.coordinator_id, request.epoch)
            )
        self._learn(await self._write(wanted, history, read_takeover(request)))

    def of(self, coordinator_id: str, epoch: int) -> Fenced:
        """The coordinator's fence. Raises UNKNOWN_EPOCH or STALE_EPOCH where `epoch` is another one."""
        fence = self.get(coordinator_id)
        if fence is None:
            raise XacoordError(Reason.UNKNOWN_EPOCH, f"coordinator {coordinator_id} never fenced this agent")
        if epoch != fence.epoch:
            reason = Reason.STALE_EPOCH if epoch < fence.epoch else Reason.UNKNOWN_EPOCH
            raise XacoordError(
                reason,
                f"epoch {epoch} is not the fenced one, {fence.epoch}",
                metadata={"remembered_epoch": str(fence.epoch)},
            )
        return fence

    def get(self, coordinator_id: str) -> Fenced | None:
        """The coordinator's fence, None where it never fenced this agent."""
        return self._remembered.get(coordinator_id)

    def __getitem__(self, coordinator_id: str) -> Fenced:
        return self._remembered[coordinator_id]

    def evidence(self, coordinator_id: str) -> Evidence:
        """How evidence about the coordinator's branches is kept."""
        fence = self.get(coordinator_id)
        return Evidence(self._config.witness_table, fence.purged_to if fence else "")

    def purged(self, coordinator_id: str, below: str) -> None:
        """Witness rows below `below` may be missing from now on."""
        self._learn(replace(self[coordinator_id], purged_to=below))


def mismatch(participant: str) -> XacoordError:
    """The error for those who take this agent for another participant's."""
    return XacoordError(
        Reason.PARTICIPANT_MISMATCH,
        f"this agent speaks for participant {participant!r}; check its address",
        metadata={"participant": participant},
    )


def read_fence(request: pb.FenceRequest) -> tuple[Fenced, dict[int, int]]:
    """What a coordinator wants to be remembered, and its epochs with their nonces.

    Raises:
        XacoordError: INVALID_REQUEST.
    """
    check_identity(request.coordinator_id, request.epoch, request.log_identity)
    if request.number > MAX_PARTICIPANT_NUMBER:
        raise _invalid(f"number must be 0 to {MAX_PARTICIPANT_NUMBER}")
    if len(request.history) > MAX_HISTORY:
        raise _invalid(f"history has {len(request.history)} epochs; at most {MAX_HISTORY} are taken")
    history = {epoch.epoch: epoch.nonce for epoch in request.history}
    if len(history) != len(request.history):
        raise _invalid("history has an epoch twice")
    if request.epoch not in history or max(history) > request.epoch or min(history) < 1:
        raise _invalid("history must have the request's own epoch as its last, and none below 1")
    nonce = history[request.epoch]
    wanted = Fenced(request.coordinator_id, request.number, request.epoch, request.log_identity, nonce)
    return wanted, history


def read_takeover(request: pb.FenceRequest) -> Takeover | None:
    """What an operator's request expects to be remembered; None for an ordinary fence.

    Raises:
        XacoordError: INVALID_REQUEST.
    """
    if not request.HasField("takeover"):
        return None
    expected = request.takeover
    check_identity(request.coordinator_id, expected.epoch, expected.log_identity)
    if request.epoch <= expected.epoch:
        raise _invalid(f"a takeover of epoch {expected.epoch} needs a higher epoch than {request.epoch}")
    return Takeover(expected.epoch, expected.nonce, expected.log_identity)


def check_coordinator_id(coordinator_id: str) -> None:
    """Raise INVALID_REQUEST where a coordinator's id has not its form."""
    if not is_coordinator_id(coordinator_id):
        raise _invalid("coordinator_id must have 4 characters of [0-9a-z]")


def check_identity(coordinator_id: str, epoch: int, log_identity: bytes) -> None:
    """Raise INVALID_REQUEST where a coordinator does not name itself properly."""
    check_coordinator_id(coordinator_id)
    if not 1 <= epoch <= MAX_EPOCH:
        raise _invalid(f"epoch must be 1 to {MAX_EPOCH}")
    if len(log_identity) != 16:
        raise _invalid("log_identity must have 16 bytes")


def _invalid(message: str) -> XacoordError:
    return XacoordError(Reason.INVALID_REQUEST, message)
