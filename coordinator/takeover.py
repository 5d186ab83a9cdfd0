"""Takeover: carries out a plan of derive.py, in an order in which a crash anywhere leaves everything on HOLD.

1. Hold the log's lock. Write an epoch above all that is remembered, the COMMIT records that are proved, and
   that a derivation has begun (R3: durable before anything else).
2. Take over the fence of each participant: compare and swap what it told. The real log is shut out then.
3. Ask again. Where the evidence is another one, stop: the log stays as it is, on HOLD.
4. Write the COMMIT records of what is presumed, and that the derivation is done; durable.
5. The ordinary start: COMMIT records are carried out, everything else is rolled back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from coordinator.codec import encode
from coordinator.config import Config, load_config
from coordinator.core.derive import Action, Case, Judgement, Presumption, Seen, judge, still_holds
from coordinator.core.records import CommitRecord, DeriveRecord, EndRecord, Record
from coordinator.core.replay import OpenTransaction, Replayed
from coordinator.core.states import State
from coordinator.derive import (
    DeriveRefused,
    Plan,
    cases_of,
    check_applicable,
    check_attached,
    make_plan,
)
from coordinator.driver import make_clock
from coordinator.embedded import Embedded
from coordinator.journal import Opened, open_log, start_epoch
from coordinator.recall import Agents, TakeoverRefused, Unanswered
from coordinator.runtime import Runtime, log_options
from dtp import Decision
from shell import logs
from shell.failpoints import Failpoints
from wal import LogLocked, LogMissing, read

_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.05
_HELD = "nothing was resolved, everything is on hold"


def derive(
    config_path: Path,
    presumption: Presumption,
    confirm: Callable[[Plan], None] | None,
    *,
    overthrow: bool = False,
) -> Plan:
    """The plan and, with `confirm`, which may raise, its execution.

    Args:
        overthrow: also where a coordinator of this id is attached, that is, runs.

    Raises:
        DeriveRefused; shell.config.ConfigError; wal.LogError, JournalError, LogContradiction, UnknownRecord,
        OSError: the log cannot be used.
    """
    config = load_config(config_path)
    logs.setup("coordctl", "ERROR", as_json=False)
    return asyncio.run(_derive(config, presumption, confirm, overthrow))


async def _derive(
    config: Config, presumption: Presumption, confirm: Callable[[Plan], None] | None, overthrow: bool
) -> Plan:
    directory = Path(config.coordinator.data_dir)
    embedded = Embedded.of(config)
    addresses = {name: embedded.address(name, p.agent) for name, p in config.participants.items()}
    async with embedded, Agents(config.coordinator.id, addresses) as agents:
        if confirm is None:
            recovered = None
            with contextlib.suppress(LogMissing):
                recovered = read(directory)
            return await make_plan(config, recovered, agents, presumption)
        failures: list[BaseException] = []
        opened = open_log(
            directory, log_options(config), on_durable=lambda lsn: None, on_failure=failures.append
        )
        try:
            plan = await make_plan(config, opened.recovered, agents, presumption)
            takeover = Takeover(config, agents, plan, presumption, overthrow)
            takeover.check(plan.attached, "nothing was changed")
            check_applicable(plan)
            confirm(plan)
            await takeover.carry_out(opened)
        finally:
            opened.log.close()
        if failures:
            raise DeriveRefused("LOG_FAILED", f"the log could not be written ({failures[0]}); run it again")
        await takeover.hit("after_derive_done")
        await _recover(config, plan, embedded)
        await _see_what_became(agents, plan)
    return plan


class Takeover:
    """One plan on its way."""

    def __init__(
        self, config: Config, agents: Agents, plan: Plan, presumption: Presumption, overthrow: bool
    ) -> None:
        self._config = config
        self._agents = agents
        self._plan = plan
        self._presumption = presumption
        self._overthrow = overthrow
        self._failpoints = Failpoints.from_environment()

    async def hit(self, place: str) -> None:
        """A place where a test can kill this process (XACOORD_FAILPOINTS)."""
        if self._failpoints is not None:
            await self._failpoints.hit(place)

    async def carry_out(self, opened: Opened) -> None:
        """Steps 1 to 4; what was appended last is durable when the log has been closed."""
        config, plan = self._config, self._plan
        # The plan may have been looked at for a long time.
        await self._see_whether_attached(plan.told, "nothing was changed")
        now, nonce = make_clock()(), secrets.randbits(64)
        beginning = Opened(opened.log, opened.recovered, begin_with(plan, now))
        assert opened.recovered.epoch < plan.epoch, "the log has begun an epoch that the plan does not know"
        start_epoch(beginning, config.settings(), config.participants, nonce, now)
        await self.hit("after_derive_begun")
        identity = opened.recovered.identity
        for name, answer in plan.told.items():
            number = plan.numbers[name]
            await self._see_whether_attached([name], _HELD)
            try:
                await self._agents.take_over(name, number, answer.memory, plan.epoch, nonce, identity)
            except (TakeoverRefused, Unanswered) as error:
                message = f"{error}; {_HELD}; run it again"
                raise DeriveRefused("TAKEOVER_FAILED", message) from error
            await self.hit("after_takeover")
        await self._compare()
        await self.hit("before_derive_done")
        records: list[Record] = [*presumed_commits(plan, now), DeriveRecord(plan.epoch, now, done=True)]
        for record in records:
            entry = encode(record)
            opened.log.append(entry.kind, entry.epoch, entry.sequence, entry.payload, kick=False)

    def check(self, attached: Mapping[str, int], then: str) -> None:
        """Stop where a coordinator is attached, unless it is to be overthrown."""
        if not self._overthrow:
            check_attached(self._plan.coordinator_id, attached, then)

    async def _see_whether_attached(self, names: Iterable[str], then: str) -> None:
        """Look again: it may have come back."""
        try:
            attached = await self._agents.attached(names)
        except Unanswered as error:
            raise DeriveRefused("PARTICIPANT_UNAVAILABLE", f"{error}; {then}; run it again") from error
        self.check(attached, then)

    async def _compare(self) -> None:
        """Now nobody else can decide: is the evidence still that of the plan?"""
        plan = self._plan
        try:
            told = await self._agents.ask(plan.replayed.transactions)
        except Unanswered as error:
            message = f"{error}; {_HELD}; run it again"
            raise DeriveRefused("PARTICIPANT_UNAVAILABLE", message) from error
        later = {}
        for case in cases_of(told, plan.numbers, plan.replayed):
            later[str(case.id)] = (case, judge(case, plan.horizon, self._presumption))
        before = {str(case.id): (case, judged) for case, judged in plan.judged}
        for gtrid in sorted({*before, *later}):
            if gtrid not in before or gtrid not in later or not still_holds(before[gtrid], later[gtrid]):
                raise DeriveRefused(
                    "EVIDENCE_CHANGED",
                    f"{gtrid} is not any more as the plan has it; {_HELD}; look at the new plan and run it "
                    "again",
                )


def begin_with(plan: Plan, now: float) -> Replayed:
    """The live state of the new log: numbers, what is proved, and that the rest is not known yet.

    Nonces and marks of before are left out: they are those of a log that is lost. Of an older copy of the log
    keys, heuristic outcomes and what is still prepared are kept.
    """
    old = plan.replayed if plan.is_ours else Replayed()
    begun = Replayed(plan.coordinator_id, plan.epoch - 1, numbers=dict(plan.numbers), deriving=True)
    begun.keys = dict(old.keys)
    planned = {str(case.id) for case, _ in plan.judged}
    for _, judged in plan.judged:
        if judged.action is Action.COMMIT and not judged.presumed:
            begun.transactions[str(judged.id)] = _decided(plan, judged, now)
    for gtrid, entry in old.transactions.items():
        if gtrid in begun.transactions:
            continue
        if _goes_on(entry, gtrid in planned):
            known = tuple(number for number in entry.participants if number in plan.names)
            begun.transactions[gtrid] = replace(entry, participants=known)
        elif entry.idempotency_key and _has_committed(plan, gtrid):
            key, fingerprint = entry.idempotency_key, entry.fingerprint
            begun.keys[key] = EndRecord(entry.id, now, True, key, fingerprint)
    return begun


def _goes_on(entry: OpenTransaction, planned: bool) -> bool:
    """Whether an entry of an older copy, that is not proved to be committed, is kept as it is."""
    if planned:
        return entry.decision is None  # whom it names is evidence, also for a plan that is made after a crash
    return bool(entry.heuristic)  # nothing is prepared any more; it waits for a person


def _has_committed(plan: Plan, gtrid: str) -> bool:
    sights = (answer.sights.get(gtrid) for answer in plan.told.values())
    return any(sight is not None and sight.seen is Seen.COMMITTED for sight in sights)


def _decided(plan: Plan, judged: Judgement, now: float) -> OpenTransaction:
    """The transaction with its COMMIT record."""
    known = plan.replayed.transactions.get(str(judged.id)) or OpenTransaction(judged.id, (), now)
    numbers = tuple(number for number in judged.commit_at if number in plan.names)
    decided_at = known.decided_at or now
    return replace(known, participants=numbers, decision=Decision.COMMIT, decided_at=decided_at, heuristic=())


def presumed_commits(plan: Plan, now: float) -> Iterable[CommitRecord]:
    """What only an operator has decided; written when nobody else can decide any more."""
    for _, judged in plan.judged:
        if judged.action is Action.COMMIT and judged.presumed:
            entry = _decided(plan, judged, now)
            yield CommitRecord(
                entry.id,
                entry.participants,
                entry.begun_at,
                entry.decided_at,
                entry.idempotency_key,
                entry.fingerprint,
            )


async def _recover(config: Config, plan: Plan, embedded: Embedded) -> None:
    """The ordinary start, until everything that can be finished is finished."""
    try:
        runtime = await Runtime.start(config, embedded=embedded)
    except LogLocked:
        return  # a coordinator was started meanwhile: it does the same
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        core = runtime.driver.core
        while loop.time() < deadline and not runtime.driver.failed.done():
            heard = all(p.heard for p in core.participants.values() if p.configured)
            if heard and not core.busy:
                break
            await asyncio.sleep(_POLL_SECONDS)
        heuristic = [t for t in core.open.values() if t.state is State.HEURISTIC]
        plan.heuristic = [(t.gtrid, t.outcome.value) for t in heuristic]
    finally:
        await runtime.close()


_BECAME = {
    Seen.COMMITTED: "committed",
    Seen.ABSENT: "not committed",
    Seen.PREPARED: "still prepared",
    Seen.WORKING: "still prepared",
    Seen.UNPROVED: "gone, nothing proves how",
}


async def _see_what_became(agents: Agents, plan: Plan) -> None:
    """Fill in `result` from the servers, not from what was asked of them."""
    try:
        told = await agents.ask(str(case.id) for case, _ in plan.judged)
    except Unanswered as error:
        raise DeriveRefused(
            "PARTICIPANT_UNAVAILABLE",
            f"carried out, but what became of it is not known: {error}; start the coordinator, which goes on",
        ) from error
    for case, _ in plan.judged:
        gtrid = str(case.id)
        for name, answer in told.items():
            number = plan.numbers[name]
            if number not in involved(case):
                continue
            before, after = case.sights[number].seen, answer.sights[gtrid].seen
            became = _BECAME[after]
            if after is Seen.ABSENT and before in (Seen.PREPARED, Seen.WORKING):
                became = "rolled back"
            plan.result[(gtrid, name)] = became


def involved(case: Case) -> set[int]:
    """Whom a transaction concerns, as far as anybody knows."""
    return set(case.named) | {n for n, s in case.sights.items() if s.seen not in (Seen.ABSENT, Seen.UNPROVED)}
