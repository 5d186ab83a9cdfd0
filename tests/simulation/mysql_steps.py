"""What a statement of the simulation's MySQL comes to: an answer, an effect that comes later, or a wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from participant_agent.core.effects import Lost, Ok, ServerError

Answer: TypeAlias = Ok | ServerError | Lost
Done: TypeAlias = Callable[[tuple[Answer, ...]], None]


@dataclass
class Later:
    """A statement's effect, still to come.

    Attributes:
        verb: which stall holds it.
        effect: carries it out; may in turn have to wait.
        interrupted: what a wait that did not end does instead; the answer is the error's.
        flushes: it takes the time of a flush.
    """

    verb: str
    effect: Callable[[], Step]
    interrupted: Callable[[], None]
    flushes: bool = True


Step: TypeAlias = Ok | ServerError | Lost | Later


class Blocked(Exception):
    """The statement has to wait, and is to be begun again when it may go on.

    Attributes:
        for_row: it waits for a row, else for the end of another session's XA COMMIT or XA ROLLBACK.
    """

    def __init__(self, for_row: bool) -> None:
        super().__init__()
        self.for_row = for_row


class Deadlock(Exception):
    """The transaction that asked for a row is the victim."""
