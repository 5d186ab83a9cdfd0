"""The ledger: what clients asked for and what they were told. It is kept apart from the system, and nothing
in it is ever corrected."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Attempt:
    """One global transaction as its client sees it.

    Attributes:
        gtrid: "" while the client has not heard it.
        told: (when, outcome, whether it was called completed), in order.
        refused: a definite error came back: it certainly did not commit.
        enlisted: participants where its first statements succeeded.
        doomed: a later statement of it failed for sure: it must not commit.
    """

    gtrid: str = ""
    told: list[tuple[float, str, bool]] = field(default_factory=list)
    refused: bool = False
    enlisted: set[str] = field(default_factory=set)
    doomed: bool = False

    @property
    def outcomes(self) -> set[str]:
        return {outcome for _, outcome, _ in self.told}


@dataclass
class Work:
    """What a client wants to happen once: amounts on some participants, on all of them or on none.

    Attributes:
        number: names a private row at each participant, which counts how often the work was done.
        writes: the participants where it writes.
        key: of idempotency, "" for none.
        asked: the client asked to commit (or ran it in one shot).
        vanished: the client left without an answer.
    """

    number: int
    coordinator: str
    writes: tuple[str, ...]
    key: str = ""
    asked: bool = False
    vanished: bool = False
    ended: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    def attempt(self) -> Attempt:
        """A new try."""
        self.attempts.append(Attempt())
        return self.attempts[-1]
