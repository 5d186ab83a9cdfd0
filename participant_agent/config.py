"""Configuration of the agent: the structs behind its TOML file. docs/agent.md explains each key."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from shell.config import check_address, check_log_level, check_range

ENVIRONMENT_PREFIX = "XACOORD_AGENT"
UNIX = "unix:"
MAX_NAME_CHARACTERS = 40
# Rows of a call travel in one message, of which gRPC's clients accept 4 MiB.
_MAX_RESULT_BYTES = 3_800_000


class AgentSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[agent]: who it speaks for, and where it listens.

    Attributes:
        participant: the participant's name, 1 to 40 characters of [a-z0-9_-].
        listen: "host:port", or "unix:/path".
        advertise: where clients reach it; "" means `listen`.
        take_over_seconds: how long a start waits for a former agent's lock before it is refused; longer than
            a server keeps the lock of an agent that has vanished (control.SILENCE_SECONDS).
    """

    participant: str
    listen: str = "127.0.0.1:7430"
    advertise: str = ""
    take_over_seconds: float = 20.0
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_-]{1,40}", self.participant):
            raise ValueError("agent.participant must have 1 to 40 characters of [a-z0-9_-]")
        if not self.listen.startswith(UNIX):
            check_address(self.listen, "agent.listen")
        check_range(self.take_over_seconds, "agent.take_over_seconds", 0, 3600)
        check_log_level(self.log_level, "agent.log_level")


class MysqlSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[mysql]: the participant's server. `unix_socket` goes before `host`."""

    user: str
    unix_socket: str = ""
    host: str = "127.0.0.1"
    port: int = 3306
    password: str = ""
    password_file: str = ""
    database: str = ""
    schema: str = "xacoord"
    connect_timeout_seconds: int = 5

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", self.schema):
            raise ValueError("mysql.schema must have 1 to 64 characters of [A-Za-z0-9_]")
        if self.password and self.password_file:
            raise ValueError("give mysql.password or mysql.password_file, not both")
        check_range(self.port, "mysql.port", 1, 65535)
        check_range(self.connect_timeout_seconds, "mysql.connect_timeout_seconds", 1, 3600)

    def secret(self) -> str:
        """The password, read from its file where that is given. Raises OSError, or ValueError where the file
        is no text."""
        if self.password_file:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        return self.password


class SessionsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[sessions]: connections to the server.

    Attributes:
        max: sessions that work in branches at the same time; 16 more are kept for commit and rollback.
        warm: connections kept open when idle.
        isolation: of the sessions that run clients' statements; "" keeps the server's default.
        lock_wait_seconds: bound of each row lock and metadata lock wait.
        statement_timeout_seconds: after which a statement's session is killed.
        acquire_timeout_seconds: how long a branch waits for a free session.
    """

    max: int = 64
    warm: int = 8
    lock_wait_seconds: int = 3
    isolation: str = ""
    statement_timeout_seconds: float = 60.0
    acquire_timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.max <= 900:
            raise ValueError("sessions.max must be 1 to 900")
        if not 0 <= self.warm <= self.max:
            raise ValueError("sessions.warm must be 0 to sessions.max")
        if not 1 <= self.lock_wait_seconds <= 3600:
            raise ValueError("sessions.lock_wait_seconds must be 1 to 3600")
        check_range(self.statement_timeout_seconds, "sessions.statement_timeout_seconds", 1, 86_400)
        check_range(self.acquire_timeout_seconds, "sessions.acquire_timeout_seconds", 0, 3600)
        if self.statement_timeout_seconds <= self.lock_wait_seconds:
            raise ValueError("sessions.statement_timeout_seconds must exceed sessions.lock_wait_seconds")
        levels = ("", "READ-UNCOMMITTED", "READ-COMMITTED", "REPEATABLE-READ", "SERIALIZABLE")
        if self.isolation not in levels:
            raise ValueError(
                f"sessions.isolation must be one of {', '.join(level or repr('') for level in levels)}"
            )


class LimitsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[limits]: what one call may return."""

    result_rows: int = 10_000
    result_bytes: int = 3_500_000

    def __post_init__(self) -> None:
        check_range(self.result_rows, "limits.result_rows", 1, 1_000_000)
        check_range(self.result_bytes, "limits.result_bytes", 1, _MAX_RESULT_BYTES)


class WitnessSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[witness]: rows that prove commits. Without them a lost branch can only be reported as a hazard."""

    enabled: bool = True


class PreflightSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """[preflight]: names of refusals that become warnings."""

    allow: tuple[str, ...] = ()


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The agent's configuration."""

    agent: AgentSection
    mysql: MysqlSection
    sessions: SessionsSection = SessionsSection()
    limits: LimitsSection = LimitsSection()
    witness: WitnessSection = WitnessSection()
    preflight: PreflightSection = PreflightSection()

    @property
    def address(self) -> str:
        """Where clients reach the agent."""
        return self.agent.advertise or self.agent.listen

    @property
    def witness_table(self) -> str | None:
        """The witness table as SQL, None where rows are not written."""
        return f"{self.mysql.schema}.witness" if self.witness.enabled else None
