"""Configuration of the coordinator: TOML, overridden by environment variables XACOORD__SECTION__KEY."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from coordinator.core.settings import Settings
from dtp.xid import is_coordinator_id
from shell.config import ConfigError, check_address, check_log_level, check_range, load

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MAX_TIMEOUT = 86_400.0


class CoordinatorSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[coordinator]

    Attributes:
        id: 4 characters of [0-9a-z]; no two coordinators that share an agent may have the same.
        data_dir: the log's directory; a local disk.
        listen: "host:port" of gRPC.
        http_listen: "host:port" of /metrics, /healthz and /readyz; "" switches it off.
        log_level: a name of the logging module.
        drain_seconds: how long SIGTERM waits for decided transactions.
        max_message_bytes: of one gRPC message.
    """

    id: str
    data_dir: str
    listen: str = "127.0.0.1:7420"
    http_listen: str = "127.0.0.1:7421"
    log_level: str = "INFO"
    drain_seconds: float = 10.0
    max_message_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if not is_coordinator_id(self.id):
            raise ValueError("coordinator.id must be 4 characters of [0-9a-z]")
        if not self.data_dir:
            raise ValueError("coordinator.data_dir must name a directory")
        if "\0" in self.data_dir:
            raise ValueError("coordinator.data_dir has a NUL character")
        check_log_level(self.log_level, "coordinator.log_level")
        check_range(self.drain_seconds, "coordinator.drain_seconds", 0, 3600)
        check_range(self.max_message_bytes, "coordinator.max_message_bytes", 64 << 10, 64 << 20)


class TransactionsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[transactions]; times in seconds, see coordinator.core.settings."""

    default_timeout: float = 30.0
    max_timeout: float = 300.0
    max_open: int = 20_000
    retry_max: float = 2.0
    rescan_every: float = 10.0
    keep_ended: float = 600.0
    keep_keys: float = 86_400.0
    witness_retention: float = 3_600.0

    def __post_init__(self) -> None:
        if not 0 < self.default_timeout <= self.max_timeout <= _MAX_TIMEOUT:
            raise ValueError("transactions: 0 < default_timeout <= max_timeout <= 86400 (seconds) must hold")
        check_range(self.retry_max, "transactions.retry_max", 0.1, 3600)
        check_range(self.rescan_every, "transactions.rescan_every", 0.1, 3600)
        check_range(self.keep_ended, "transactions.keep_ended", 1, 30 * _MAX_TIMEOUT)
        check_range(self.keep_keys, "transactions.keep_keys", 1, 30 * _MAX_TIMEOUT)
        check_range(self.witness_retention, "transactions.witness_retention", 1, 30 * _MAX_TIMEOUT)
        check_range(self.max_open, "transactions.max_open", 1, 1_000_000)


class LogSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[log]

    Attributes:
        segment_mib: size of a segment file.
        alignment: 512, or 4096 for disks with such sectors.
        allow_unsafe_filesystem: accept network and memory file systems (tests).
    """

    segment_mib: int = 64
    alignment: int = 512
    allow_unsafe_filesystem: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.segment_mib <= 4096:
            raise ValueError("log.segment_mib must be from 1 to 4096")
        if self.alignment not in (512, 4096):
            raise ValueError("log.alignment must be 512 or 4096")


class ParticipantSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[participants.NAME]: where the participant's agent is; one of both.

    Attributes:
        agent: its "host:port".
        agent_config: the agent's own file, relative to this one: the agent runs in the coordinator's process.
    """

    agent: str = ""
    agent_config: str = ""


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    coordinator: CoordinatorSection
    participants: dict[str, ParticipantSection]
    transactions: TransactionsSection = TransactionsSection()
    log: LogSection = LogSection()

    def __post_init__(self) -> None:
        if not self.participants:
            raise ValueError('name at least one participant: [participants.NAME] agent = "host:port"')
        for name, participant in self.participants.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"participants.{name}: a name is 1 to 40 characters of [a-z0-9_-]")
            if bool(participant.agent) is bool(participant.agent_config):
                raise ValueError(f"participants.{name}: give agent or agent_config, one of them")
            if participant.agent:
                check_address(participant.agent, f"participants.{name}.agent", least_port=1)
        check_address(self.coordinator.listen, "coordinator.listen")
        if self.coordinator.http_listen:
            check_address(self.coordinator.http_listen, "coordinator.http_listen")

    def settings(self) -> Settings:
        """The core's part."""
        t = self.transactions
        return Settings(
            coordinator_id=self.coordinator.id,
            default_timeout=t.default_timeout,
            max_timeout=t.max_timeout,
            max_transactions=t.max_open,
            retry_max=t.retry_max,
            rescan_every=t.rescan_every,
            keep_ended=t.keep_ended,
            keep_keys=t.keep_keys,
            witness_retention=t.witness_retention,
        )


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check the configuration.

    Raises:
        ConfigError: it names the file, the key and what is wrong.
    """
    config = load(Config, path, "XACOORD", environ)
    if path is None:
        return config
    for name, participant in config.participants.items():
        if participant.agent_config:
            file = str(path.parent / participant.agent_config)
            config.participants[name] = ParticipantSection(agent_config=file)
    return config


__all__ = ["Config", "ConfigError", "load_config"]
