"""The coordinator in the simulation: the daemon's journal, log, core, driver, links and service, wired as
coordinator/runtime.py wires them, on simulated ports.

Fault model: that of the ports (process.py, files.py, network.py), and a place before and after each effect of
the driver. The log's writer and housekeeper are no threads but callbacks, which come after the time of a
flush. A process whose log has failed ends as the daemon does: at once, but for the moment in which callers
hear UNKNOWN.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.admin import recover
from coordinator.agents import AgentLink, Identity
from coordinator.core import effects, inputs
from coordinator.core.effects import Effect
from coordinator.core.records import Record
from coordinator.core.settings import Settings
from coordinator.driver import Driver
from coordinator.failpoint_driver import place as name_of
from coordinator.journal import JournalError, LogJournal, open_log, start_epoch
from coordinator.runtime import Runtime
from coordinator.service import CoordinatorService
from coordinator.v1 import coordinator_pb2_grpc as rpc
from dtp import Decision, XacoordError
from tests.simulation.calls import channel
from tests.simulation.files import Disk
from tests.simulation.process import Process, place
from wal import LogError, LogFailed, LogFull, Options

if TYPE_CHECKING:
    from tests.simulation.world import World

_WALL = 1_700_000_000.0
_END_SECONDS = 0.05  # as in the daemon: callers hear UNKNOWN
_TEND_SECONDS = 0.02


class Observer:
    """What metrics would hear, for the oracle."""

    def __init__(self, node: CoordinatorNode) -> None:
        self._node = node

    def changed(self, effect: effects.Changed) -> None:
        self._node.world.oracle.changed(self._node, effect)

    def alerted(self, effect: effects.Alert) -> None:
        self._node.world.oracle.alerted(self._node, effect)

    def scanned(self, event: inputs.AgentScanned) -> None:
        pass

    def lost(self, event: inputs.AgentLost) -> None:
        pass


class CrashingDriver(Driver):
    """The driver with a place before and after each effect."""

    node: CoordinatorNode

    def _perform(self, effect: Effect) -> None:
        name = name_of(effect)
        trace = self.node.world.trace
        if trace.on:
            trace(self.node.name, "effect", name, effect)
        place(f"before {name}")
        if isinstance(effect, effects.Send) and getattr(effect.command, "one_phase", False):
            self.node.world.oracle.one_phase.add(effect.gtrid)
        super()._perform(effect)
        place(f"after {name}")

    def step(self, event: inputs.Input) -> list[Effect]:
        trace = self.node.world.trace
        if trace.on and not isinstance(event, inputs.TimePassed):
            trace(self.node.name, "input", event)
        return super().step(event)


class Journal(LogJournal):
    """The journal, whose log has no threads: its writer and housekeeper are called back."""

    node: CoordinatorNode

    def append(self, record: Record, number: int | None, *, kick: bool) -> None:
        super().append(record, number, kick=kick)
        self.node.world.oracle.appended(self.node, record)
        if kick:
            self.kick()

    def rotate(self, checkpoint: Iterable[Record]) -> None:
        self.node.world.counters["rotations"] += 1
        super().rotate(checkpoint)
        self.kick()

    def kick(self) -> None:
        """Wake the writer: it is done after a flush's time."""
        if not self._stepping:
            self._stepping = True
            asyncio.get_running_loop().call_later(self.node.flush_seconds(), self._step)

    _stepping = False
    _tending = False

    def _step(self) -> None:
        self._stepping = False
        if self.node.ending:
            return
        more = self._guarded(self._log.step)
        if more:
            self.kick()
        if not self._tending:
            self._tending = True
            asyncio.get_running_loop().call_later(
                _TEND_SECONDS * self.node.random.random(), self._tend, False
            )

    def _tend(self, again: bool) -> None:
        self._tending = False
        if self.node.ending:
            return
        self._guarded(self._log.tend)
        if self._log.status().blocked:
            self.kick()
        if again:
            self.tick()

    def tick(self) -> None:
        """Once a second lazy records, the watermark and the spare are seen to."""
        self.kick()
        asyncio.get_running_loop().call_later(1.0, self._tend, True)

    def _guarded(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except LogError:
            return None  # it has failed, and said so


class CoordinatorNode:
    """One coordinator id: its disk, and at most one process at a time.

    Attributes:
        ending: the process is on its way out; nothing more is written.
        exits: why former lives ended.
    """

    def __init__(
        self, world: World, coordinator_id: str, participants: dict[str, str], settings: Settings
    ) -> None:
        self.world = world
        self.id = coordinator_id
        self.address = f"coordinator-{coordinator_id}:7420"
        self.host = f"coordinator-{coordinator_id}"
        self.participants = participants
        self.settings = settings
        self.random = world.stream(f"coordinator {coordinator_id}")
        self.disk = Disk(world.loop, world.stream(f"disk {coordinator_id}"))
        self.options = Options(segment_bytes=world.plan.segment_bytes, allow_unsafe_filesystem=True)
        self.process: Process | None = None
        self.driver: CrashingDriver | None = None
        self.journal: Journal | None = None
        self.runtime: Runtime | None = None
        self.service: CoordinatorService | None = None
        self.lives = 0
        self.ending = False
        self.may_run = True
        self.log_was_lost = False
        self.on_hold = False
        self.name = self.host

    def flush_seconds(self) -> float:
        least, most = self.world.plan.flush_seconds
        return least + (most - least) * self.random.random()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """A supervisor starts the daemon."""
        if self.alive:
            return
        self.lives += 1
        self.name = f"{self.host}#{self.lives}"
        self.ending = False
        self.driver = self.journal = self.runtime = self.service = None
        process = self.process = Process(self.world.loop, self.name, self.host)
        process.on_end.append(self._ended)
        self.world.trace(self.name, "starts")
        process.spawn(self._main(process))

    def kill(self) -> None:
        """kill -9, or exit."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> bool:
        """SIGTERM: drain, close the log, exit."""
        process, runtime, journal = self.process, self.runtime, self.journal
        if process is None or runtime is None or journal is None or not process.alive or self.ending:
            return False
        self.world.trace(self.name, "is told to stop")

        async def end() -> None:
            await runtime.drain(5.0 * self.random.random())
            if self.service is not None:
                self.service.streams.end()
                await asyncio.sleep(_END_SECONDS)
            if not runtime.driver.failed.done():
                self.ending = True
                with contextlib.suppress(LogError):
                    journal.close()
                process.kill()

        process.spawn(end())
        return True

    def _ended(self) -> None:
        process = self.process
        assert process is not None
        self.world.trace(self.name, "is dead", process.died_at_place)
        self.disk.process_crash()
        if self.may_run:
            delay = 0.05 + 2.0 * self.random.random() ** 2
            self.world.network.later(delay, self.start_again)

    def start_again(self) -> None:
        """The supervisor's pause is over."""
        if self.may_run and not self.alive:
            self.world.counters["coordinator restarts"] += 1
            self.start()

    async def _main(self, process: Process) -> None:
        try:
            driver = await self._start(process)
        except (LogFailed, LogFull, OSError) as error:
            self.world.counters["starts failed"] += 1
            self.world.trace(self.name, "cannot start", error)
            process.kill()
            return
        except (LogError, JournalError, Exception) as error:
            self.world.oracle.violated("START", f"{self.name} cannot start: {type(error).__name__}: {error}")
            self.may_run = False
            process.kill()
            return
        await driver.failed
        self.world.trace(self.name, "the log failed", driver.failed.result())
        self.world.oracle.log_failed(self, driver.failed.result())
        self.ending = True
        await asyncio.sleep(_END_SECONDS)
        process.kill()

    async def _start(self, process: Process) -> CrashingDriver:
        world, loop = self.world, self.world.loop
        late: list[Callable[[int], None]] = []
        failed: list[Callable[[BaseException], None]] = []
        opened = open_log(
            Path("/log"),
            self.options,
            on_durable=lambda lsn: late[0](lsn),
            on_failure=lambda error: failed[0](error),
            files=self.disk,
            threaded=False,
        )
        world.oracle.replayed(self, opened.replayed)
        journal = Journal(opened.log, opened.recovered.identity, loop)
        journal.node = self
        late.append(journal.durable_from_thread)
        nonce = self.random.getrandbits(64)
        core = start_epoch(opened, self.settings, self.participants, nonce, self.clock())
        driver = CrashingDriver(core, journal, self.clock, Observer(self))
        driver.node = self
        failed.append(lambda error: loop.call_soon_threadsafe(driver.fail, error))
        journal.on_durable = lambda number: self._durable(driver, number)
        identity = Identity(self.id, core.epoch, journal.identity, core.nonces)
        for name, address in self.participants.items():
            driver.links[name] = AgentLink(
                name,
                address,
                identity,
                driver.submit,
                self.clock,
                lambda: core.purge_mark,
                lambda address: channel(world.network, address, keepalive=True),  # type: ignore[return-value,arg-type]
            )
        runtime = Runtime(driver, Observer(self), journal)  # type: ignore[arg-type]
        self.driver, self.journal, self.runtime = driver, journal, runtime
        world.oracle.started(self, core)
        for link in driver.links.values():
            loop.create_task(link.run())
        driver.start()
        journal.tick()
        listener = world.network.listen(self.address, process)
        self.service = service = CoordinatorService(runtime, self.random.getrandbits)
        rpc.add_CoordinatorServicer_to_server(service, listener)  # type: ignore[arg-type]
        return driver

    def recover(self) -> bool:
        """An operator asks for a scan of every participant, and for what follows from it."""
        process, runtime = self.process, self.runtime
        if process is None or runtime is None:
            return False
        self.world.trace(self.name, "operator", "recover")
        process.spawn(recover(runtime, list(runtime.driver.links), apply=True))
        return True

    def operate(self, gtrid: str, action: str) -> None:
        """An operator asks for something, and its answer matters to nobody."""
        driver, process = self.driver, self.process
        assert driver is not None
        assert process is not None
        self.world.trace(self.name, "operator", action, gtrid)

        async def ask() -> None:
            with contextlib.suppress(XacoordError):
                if action == "forget":
                    await driver.ask(lambda ticket: inputs.ForgetRequested(ticket, gtrid), gtrid)
                    self.world.forgotten.add(gtrid)
                else:
                    wanted = Decision.COMMIT if action == "commit" else Decision.ROLLBACK
                    await driver.ask(
                        lambda ticket: inputs.ResolveRequested(ticket, gtrid, wanted, "test", "test"), gtrid
                    )
                self.world.counters[f"operator {action} accepted"] += 1

        process.spawn(ask())

    def _durable(self, driver: Driver, number: int) -> None:
        self.world.oracle.durable(self, number)
        driver.submit(inputs.RecordsDurable(number))

    def clock(self) -> float:
        """Seconds since 1970."""
        return _WALL + self.world.loop.time()
