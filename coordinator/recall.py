"""Recall: asks every agent what it knows of a coordinator whose log is lost, and takes its fence over.

Short calls without a link: nobody has to be fenced for them, and nothing is begun by asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from coordinator.agents import LinkDown, dial, reason_of, xids
from coordinator.core.derive import Memory, Seen, Sight
from dtp import Reason, Xid
from dtp.xid import MAX_PARTICIPANT_NUMBER, is_gtrid
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.v1 import participant_agent_pb2_grpc as rpc
from shell.text import clean

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 10.0
_FENCE_SECONDS = 30.0
_BATCH = 1_000
_SEEN = {
    pb.EVIDENCE_STATE_COMMITTED: Seen.COMMITTED,
    pb.EVIDENCE_STATE_NOT_COMMITTED: Seen.ABSENT,
    pb.EVIDENCE_STATE_NONE: Seen.UNPROVED,
}


class Unanswered(Exception):
    """Participants that did not answer, by name, with why."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(", ".join(f"{name} ({error})" for name, error in errors.items()))


class TakeoverRefused(Exception):
    """A participant remembers something else than it told."""


@dataclass(slots=True)
class Told:
    """What one participant has told.

    Attributes:
        memory: None where the coordinator has never fenced it.
        witness: its branches write witness rows.
        prepared: ours, as XA RECOVER lists them.
        sights: evidence by gtrid, of all that were asked about.
        attached: the epoch of the coordinator's stream that is open there now, 0 where none is.
    """

    memory: Memory | None
    witness: bool
    prepared: tuple[Xid, ...] = ()
    sights: dict[str, Sight] = field(default_factory=dict)
    attached: int = 0


class Agents:
    """The agents of all participants; an asynchronous context manager."""

    def __init__(self, coordinator_id: str, addresses: Mapping[str, str]) -> None:
        self._coordinator_id = coordinator_id
        self._addresses = addresses
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, Any] = {}

    async def __aenter__(self) -> Agents:
        for name, address in self._addresses.items():
            self._channels[name] = dial(address)
            self._stubs[name] = rpc.ParticipantAgentStub(self._channels[name])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close(grace=None)

    async def ask(self, also: Iterable[str] = ()) -> dict[str, Told]:
        """Everything about each transaction that is prepared anywhere, and about those in `also`.

        Raises:
            Unanswered: not everybody has answered.
        """
        found = await self._all(self._introduce)
        gtrids = {xid.gtrid.decode("ascii") for told in found.values() for xid in told.prepared}
        asked = sorted(gtrids | set(also))

        async def recall(name: str) -> None:
            for start in range(0, len(asked), _BATCH):
                batch = asked[start : start + _BATCH]
                found[name].sights.update(await self._sights(name, batch))

        await self._all(recall)
        return found

    async def attached(self, names: Iterable[str]) -> dict[str, int]:
        """Where a stream of the coordinator is open now, with its epoch.

        Raises:
            Unanswered: not everybody has answered.
        """
        found = await self._all(self._recall, names)
        return {name: answer.attached_epoch for name, answer in found.items() if answer.attached_epoch}

    async def _all(
        self, ask: Callable[[str], Awaitable[Any]], names: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Ask all, or `names`, at once; everybody has to answer."""
        names = list(self._addresses if names is None else names)
        answers = await asyncio.gather(*(ask(name) for name in names), return_exceptions=True)
        errors: dict[str, str] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                errors[name] = clean(f"{answer.code().name}: {answer.details()}")
            elif isinstance(answer, LinkDown):
                errors[name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
        if errors:
            raise Unanswered(errors)
        return dict(zip(names, answers, strict=True))

    async def _introduce(self, name: str) -> Told:
        known = await self._recall(name)
        request = pb.ScanRequest(coordinator_id=self._coordinator_id)
        scan = await self._stubs[name].Scan(request, timeout=_ASK_SECONDS)
        ours = tuple(xid for xid in xids(scan) if self._is_ours(xid))
        return Told(_memory(known), known.server.witness, ours, attached=known.attached_epoch)

    async def _recall(self, name: str) -> pb.RecallResponse:
        try:
            await asyncio.wait_for(self._channels[name].channel_ready(), _CONNECT_SECONDS)
        except TimeoutError:
            raise LinkDown(f"no agent answers at {self._addresses[name]}") from None
        request = pb.RecallRequest(coordinator_id=self._coordinator_id, participant=name)
        answer: pb.RecallResponse = await self._stubs[name].Recall(request, timeout=_ASK_SECONDS)
        return answer

    def _is_ours(self, xid: Xid) -> bool:
        id_ = xid.ours()
        return id_ is not None and id_.coordinator_id == self._coordinator_id

    async def _sights(self, name: str, gtrids: list[str]) -> dict[str, Sight]:
        request = pb.RecallRequest(coordinator_id=self._coordinator_id, participant=name, gtrids=gtrids)
        answer = await self._stubs[name].Recall(request, timeout=_ASK_SECONDS)
        if [found.gtrid for found in answer.recollections] != gtrids:
            raise LinkDown("the agent answered for other transactions")
        return {found.gtrid: _sight(found) for found in answer.recollections}

    async def take_over(
        self, name: str, number: int, expected: Memory | None, epoch: int, nonce: int, identity: bytes
    ) -> None:
        """Make the participant remember this epoch in place of exactly `expected`.

        Raises:
            TakeoverRefused: it remembers something else. Unanswered.
        """
        request = pb.FenceRequest(
            coordinator_id=self._coordinator_id,
            epoch=epoch,
            log_identity=identity,
            participant=name,
            number=number,
            history=[pb.Epoch(epoch=epoch, nonce=nonce)],
        )
        if expected is not None:
            request.takeover.epoch = expected.epoch
            request.takeover.nonce = expected.nonce
            request.takeover.log_identity = expected.log_identity
        try:
            await self._stubs[name].Fence(request, timeout=_FENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            message = clean(f"{error.code().name}: {error.details()}")
            if reason_of(error) in (Reason.STALE_EPOCH, Reason.LOG_IDENTITY_CHANGED):
                raise TakeoverRefused(f"{name}: {message}") from error
            raise Unanswered({name: message}) from error


def _memory(answer: pb.RecallResponse) -> Memory | None:
    if not answer.HasField("memory"):
        return None
    told, last = answer.memory, answer.last_committed
    if told.number > MAX_PARTICIPANT_NUMBER or len(told.log_identity) != 16:
        raise LinkDown("the agent remembers something that cannot be")
    return Memory(told.number, told.epoch, told.nonce, told.log_identity, last if is_gtrid(last) else "")


def _sight(found: pb.Recollection) -> Sight:
    seen = _SEEN.get(found.state, Seen.PREPARED if found.prepared else Seen.WORKING)
    return Sight(seen, tuple(found.participants))
