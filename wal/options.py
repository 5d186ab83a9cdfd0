"""How a log is laid out on disk. All of it may change from one start to the next."""

from __future__ import annotations

from dataclasses import dataclass

from wal.format import MAX_BATCH, SECTOR

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of whoever opens the log.

    Arguments:
        segment_bytes: size of a segment file; a multiple of `alignment`, at least 32 times it. A
            segment that begins with a checkpoint of more than a quarter of this is longer.
        alignment: frames begin at multiples of it; 512 or 4096 bytes.
        keep_retired: how many segments to keep, renamed to `*.retired`, after they are no longer needed.
        allow_unsafe_filesystem: open even on a network or memory file system.
        max_batch_bytes: a frame is closed when its body has reached this size, in bytes.
        tick_seconds: how often lazy records and the watermark are seen to.
    """

    segment_bytes: int = 64 * MIB
    alignment: int = 512
    keep_retired: int = 0
    allow_unsafe_filesystem: bool = False
    max_batch_bytes: int = MIB
    tick_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.alignment not in (SECTOR, 4096):
            raise ValueError(f"alignment must be 512 or 4096, not {self.alignment}")
        if self.segment_bytes % self.alignment or self.segment_bytes < 32 * self.alignment:
            raise ValueError(
                f"segment_bytes must be a multiple of {self.alignment} and at least {32 * self.alignment}, "
                f"not {self.segment_bytes}"
            )
        if not 1 <= self.max_batch_bytes <= MAX_BATCH:
            raise ValueError(f"max_batch_bytes must be 1..{MAX_BATCH}, not {self.max_batch_bytes}")
        if self.keep_retired < 0 or self.tick_seconds <= 0:
            raise ValueError("keep_retired must not be negative and tick_seconds must be positive")
