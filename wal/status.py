"""The log at a glance, for health checks, metrics and operators."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogStatus:
    """A snapshot; sizes in bytes.

    Attributes:
        segments: number of segment files; `bytes` is how much of the current one is written.
        queued: records appended and not durable.
        last_flush_seconds: duration of the last flush; `running_flush_seconds` is how long the one
            under way has taken so far, 0 if there is none.
        room_ok: there is room on the file system for the next segment.
        blocked: records wait for a segment that cannot be made.
    """

    identity: str
    epoch: int
    directory: str
    segments: int
    bytes: int
    durable_lsn: int
    next_lsn: int
    queued: int
    reserved: int
    spare_ready: bool
    last_flush_seconds: float
    running_flush_seconds: float
    room_ok: bool
    blocked: bool
    failed: bool
