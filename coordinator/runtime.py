"""Runtime: one started coordinator without its servers: journal, core, driver, links.

The daemon puts gRPC and HTTP in front of it; `coordctl recover --offline` uses it bare.

    open the log -> replay -> new epoch, durable -> core -> links connect -> fence, scan, reconcile
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

from coordinator.agents import Identity
from coordinator.config import Config
from coordinator.core import inputs
from coordinator.driver import Driver, make_clock
from coordinator.embedded import Embedded
from coordinator.failpoint_driver import FailpointDriver
from coordinator.journal import LogJournal, open_log, start_epoch
from coordinator.metrics import Metrics
from shell.failpoints import Failpoints
from wal import Options

_SLOW_FLUSH_SECONDS = 10.0


def log_options(config: Config) -> Options:
    """How the log is to be written."""
    return Options(
        segment_bytes=config.log.segment_mib << 20,
        alignment=config.log.alignment,
        allow_unsafe_filesystem=config.log.allow_unsafe_filesystem,
    )


class Runtime:
    """A coordinator that works. Make it with `start`."""

    def __init__(
        self, driver: Driver, metrics: Metrics, journal: LogJournal, embedded: Embedded | None = None
    ) -> None:
        self.driver = driver
        self.metrics = metrics
        self.journal = journal
        self._embedded = embedded
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        config: Config,
        check: Callable[[], None] = lambda: None,
        embedded: Embedded | None = None,
    ) -> Runtime:
        """Open the log, begin an epoch and connect to the agents.

        Args:
            config: the coordinator's.
            check: called when the log's lock is held and before anything is changed; may raise.
            embedded: agents in this process that run already; None: the configuration's, which end with it.

        Raises:
            wal.LogError, JournalError, LogContradiction, UnknownRecord, OSError: the log cannot be used.
            shell.config.ConfigError: the file of an agent in this process cannot be used.
        """
        loop = asyncio.get_running_loop()
        agents = embedded or Embedded.of(config)
        metrics = Metrics(config.participants)
        clock = make_clock()
        late: list[Callable[[int], None]] = []
        failed: list[Callable[[BaseException], None]] = []
        opened = open_log(
            Path(config.coordinator.data_dir),
            log_options(config),
            on_durable=lambda lsn: late[0](lsn),
            on_failure=lambda error: failed[0](error),
            flush_observer=metrics.flushed,
        )
        try:
            check()
            journal = LogJournal(opened.log, opened.recovered.identity, loop)
            late.append(journal.durable_from_thread)
            failpoints = Failpoints.from_environment()
            if failpoints is not None:
                await failpoints.hit("before_epoch")
            core = start_epoch(opened, config.settings(), config.participants, secrets.randbits(64), clock())
            if failpoints is None:
                driver = Driver(core, journal, clock, metrics)
            else:
                await failpoints.hit("after_epoch")
                driver = FailpointDriver(core, journal, clock, metrics, failpoints)

            def fail(error: BaseException) -> None:
                loop.call_soon_threadsafe(driver.fail, error)

            failed.append(fail)
        except BaseException:
            opened.log.close()
            raise
        journal.on_durable = lambda number: driver.submit(inputs.RecordsDurable(number))
        _add_links(driver, journal.identity, config, agents)
        runtime = cls(driver, metrics, journal, agents if embedded is None else None)
        if embedded is None:
            agents.start()
        runtime._tasks = [loop.create_task(link.run()) for link in driver.links.values()]
        driver.start()
        return runtime

    @property
    def not_ready(self) -> str:
        """Why nothing new can begin now, or ""."""
        if self.driver.failed.done():
            return "the log failed"
        waiting = self.driver.core.waiting_for
        if waiting:
            return f"first fence and reconcile not done yet: {', '.join(waiting)}"
        status = self.journal.status()
        if not status.room_ok:
            return "the log's disk has no room for another segment"
        if status.running_flush_seconds > _SLOW_FLUSH_SECONDS:
            return f"a flush of the log has been running for {status.running_flush_seconds:.0f} s"
        return ""

    async def drain(self, seconds: float) -> None:
        """Begin nothing new and let what is decided reach its participants, for at most `seconds`."""
        self.driver.submit(inputs.DrainStarted())
        deadline = asyncio.get_running_loop().time() + seconds
        driver = self.driver
        while driver.core.busy and not driver.failed.done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End the links and the agents of this process, and close the log."""
        for link in self.driver.links.values():
            await link.close()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._embedded is not None:
            await self._embedded.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.journal.close)


def _add_links(driver: Driver, log_identity: bytes, config: Config, embedded: Embedded) -> None:
    core = driver.core
    identity = Identity(core.settings.coordinator_id, core.epoch, log_identity, core.nonces)
    for name, participant in config.participants.items():
        driver.links[name] = embedded.link(
            name, participant.agent, identity, driver.submit, driver.clock, lambda: core.purge_mark
        )
