"""Offline: the log of a coordinator that is not running, for `coordctl --offline`.

Reading takes no lock and changes nothing. Recovering does what a start does, without serving: it
takes the lock, begins an epoch, fences, scans, reconciles, waits until everything that can be
finished is finished, and closes the log.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from coordinator import convert
from coordinator.admin import recover as recover_running
from coordinator.agents import AgentLink, Identity, LinkDown, xids
from coordinator.codec import Kind
from coordinator.config import Config, load_config
from coordinator.core.coordinator import Coordinator
from coordinator.core.settings import Settings
from coordinator.driver import make_clock
from coordinator.embedded import Embedded
from coordinator.journal import replay_entries
from coordinator.runtime import Runtime
from coordinator.v1 import admin_pb2, record_pb2
from coordinator.v1 import coordinator_pb2 as pb
from dtp import Gtrid, Reason, XacoordError, Xid
from shell import logs
from wal import Entry, Recovered, read

_SETTLE_SECONDS = 10.0
_POLL_SECONDS = 0.05


def transactions(directory: Path) -> list[pb.Transaction]:
    """The transactions that the log has not ended, as a start would find them.

    Raises:
        wal.LogError: the log cannot be read.
    """
    core = _hypothetical(read(directory), [])
    now = make_clock()()
    return [
        convert.transaction_of(t, now, blocked=t.in_doubt, may_tell=core.may_tell(t))
        for t in core.open.values()
    ]


def _hypothetical(recovered: Recovered, participants: list[str]) -> Coordinator:
    """The core that a start would begin with; nothing is written."""
    replayed = replay_entries(recovered.entries)
    for name in participants:
        replayed.numbers.setdefault(name, max(replayed.numbers.values(), default=0) + 1)
    epoch = max(replayed.epoch, recovered.epoch) + 1
    settings = Settings(replayed.coordinator_id or "0000")
    return Coordinator(settings, epoch, replayed, participants, make_clock()())


def recover(config_path: Path, apply: bool, participants: list[str]) -> admin_pb2.RecoverResponse:
    """The plan of a start, and with `apply` its execution, on a stopped coordinator's log.

    Raises:
        shell.config.ConfigError, wal.LogError, coordinator.journal.JournalError, XacoordError.
    """
    config = load_config(config_path)
    logs.setup("coordctl", "ERROR", as_json=False)
    unknown = [name for name in participants if name not in config.participants]
    if unknown:
        raise XacoordError(Reason.UNKNOWN_PARTICIPANT, f"{config_path} has no participant {unknown[0]!r}")
    names = participants or list(config.participants)
    return asyncio.run(_apply(config, names) if apply else _plan(config, names))


async def _plan(config: Config, names: list[str]) -> admin_pb2.RecoverResponse:
    recovered = read(Path(config.coordinator.data_dir))
    core = _hypothetical(recovered, list(config.participants))
    identity = Identity(config.coordinator.id, 0, recovered.identity, {})
    response = admin_pb2.RecoverResponse()
    # Agents of the coordinator's own process are not started for a plan: a start takes the participant over.
    embedded = Embedded.of(config, names).agents
    for name in names:
        try:
            if name in embedded:
                found = await embedded[name].look()
            else:
                found = await _ask(name, config.participants[name].agent, identity)
        except Exception as error:
            response.scans.add(participant=name, scanned=False, error=str(error))
        else:
            response.items.extend(convert.plan_items(core.plan(name, found), lambda item: ""))
            response.scans.add(participant=name, scanned=True)
    return response


async def _ask(name: str, address: str, identity: Identity) -> tuple[Xid, ...]:
    """What a running agent lists."""
    link = AgentLink(name, address, identity, lambda event: None, make_clock(), lambda: "")
    task = asyncio.get_running_loop().create_task(link.run())
    try:
        return xids(await _inspect(link))
    finally:
        task.cancel()


async def _inspect(link: AgentLink) -> Any:
    deadline = asyncio.get_running_loop().time() + 3.0
    while True:
        try:
            return await link.inspect(0)
        except LinkDown:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)


async def _apply(config: Config, names: list[str]) -> admin_pb2.RecoverResponse:
    plan = await _plan(config, names)
    runtime = await Runtime.start(config)
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        core = runtime.driver.core
        while loop.time() < deadline and (core.waiting_for or core.busy):
            await asyncio.sleep(_POLL_SECONDS)
        response = await recover_running(runtime, names, apply=True)
    finally:
        await runtime.close()
    # What was there before: the branches that the start itself has just finished are gone from the scan.
    later = {(item.participant, item.gtrid, item.bqual) for item in response.items}
    for item in plan.items:
        if (item.participant, item.gtrid, item.bqual) not in later:
            item.result = "done" if item.action in ("commit", "rollback") else ""
            response.items.append(item)
    return response


_MESSAGES: dict[int, Any] = {
    Kind.EPOCH: record_pb2.EpochRecord,
    Kind.PARTICIPANT: record_pb2.ParticipantRecord,
    Kind.PREPARE: record_pb2.PrepareRecord,
    Kind.COMMIT: record_pb2.CommitRecord,
    Kind.END: record_pb2.EndRecord,
    Kind.HEURISTIC: record_pb2.HeuristicRecord,
    Kind.FORGET: record_pb2.ForgetRecord,
    Kind.DERIVE: record_pb2.DeriveRecord,
}


class Describer:
    """Describes log entries for people, one after the other in log order.

    Entries do not repeat the coordinator's id; it is taken from the EPOCH records, which stand first in
    every log, so that transactions can be named by their gtrid.
    """

    def __init__(self) -> None:
        self._coordinator_id = ""

    def __call__(self, entry: Entry) -> dict[str, object]:
        """The entry's kind, its transaction and its payload."""
        if entry.kind not in _MESSAGES:
            return {"record": f"kind {entry.kind} (unknown to this version)", "payload": entry.payload.hex()}
        kind = Kind(entry.kind)
        message = _MESSAGES[kind].FromString(entry.payload)
        described: dict[str, object] = {"record": kind.name}
        if kind is Kind.EPOCH:
            self._coordinator_id = message.coordinator_id
        elif kind not in (Kind.PARTICIPANT, Kind.DERIVE) and self._coordinator_id:
            described["gtrid"] = str(Gtrid(self._coordinator_id, entry.epoch, entry.sequence))
        described.update(MessageToDict(message, preserving_proto_field_name=True))
        return described
