"""Settings of the core: numbers only, with their units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can set. Times in seconds.

    Attributes:
        coordinator_id: 4 characters of [0-9a-z].
        default_timeout: of a transaction whose Begin names none.
        max_timeout: the longest that a Begin may ask for.
        max_transactions: open at a time; more are refused with OVERLOADED.
        max_branches: of one transaction.
        retry_first, retry_max: phase 2 is repeated with doubling pauses between these, for ever.
        rescan_every: pause between scans of a participant that is up.
        keep_ended: how long ended transactions are listed, and how many of them.
        keep_keys: how long the idempotency key of a committed transaction is remembered, and how many.
        witness_retention: how long witness rows outlive their transaction.
    """

    coordinator_id: str
    default_timeout: float = 30.0
    max_timeout: float = 300.0
    max_transactions: int = 20_000
    max_branches: int = 64
    retry_first: float = 0.1
    retry_max: float = 2.0
    rescan_every: float = 10.0
    keep_ended: float = 600.0
    keep_ended_count: int = 5_000
    keep_keys: float = 86_400.0
    keep_keys_count: int = 100_000
    witness_retention: float = 3_600.0
