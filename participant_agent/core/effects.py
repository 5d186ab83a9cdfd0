"""Effects: what a procedure asks for, and the results it is sent back.

A procedure is a generator of `Effect` that is sent one `Result` for each and returns what it found out.
`Query` runs on the session that the procedure was given, `OnControl` on the agent's control connection.
A session that answered `Lost` or `TooLarge` is gone: whoever performs effects closes it and never uses it
again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from dtp.term import Term

T = TypeVar("T")
Cell: TypeAlias = object
Row: TypeAlias = tuple[Cell, ...]


class Verb(Term):
    """What a query does to its branch; failpoints before_<verb> and after_<verb> surround it."""

    START = "start"
    STATEMENT = "statement"
    WITNESS = "witness"
    END = "end"
    PREPARE = "prepare"
    COMMIT = "commit"
    COMMIT_ONE_PHASE = "commit_one_phase"
    ROLLBACK = "rollback"
    FENCE = "fence_write"
    PURGE = "purge"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Query:
    """One SQL text.

    Attributes:
        sql: with `%s` for each parameter (then `%%` is a percent sign); without parameters sent as it is.
        parameters: opaque to the core; the edge renders them.
        verb: what the query does.
        alone: to be sent where the server takes no more than one statement a packet.
    """

    sql: str
    parameters: tuple[object, ...] = ()
    verb: Verb = Verb.OTHER
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Several queries in one packet, on the session that the procedure was given.

    The server begins each when the one before has succeeded, and goes on whether we live or not: what comes
    after the first of them may happen although nobody heard of that one. Answered by `Answers`.
    """

    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class OnControl:
    """Run `query` on the control connection."""

    query: Query


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait; answered by an empty `Ok`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ok:
    """The server did it.

    Attributes:
        rows: of a query, else empty.
        row_count: rows returned, or affected.
        columns: opaque to the core: how the edge describes them to the client.
    """

    rows: tuple[Row, ...] = ()
    row_count: int = 0
    last_insert_id: int = 0
    warnings: int = 0
    columns: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerError:
    """The server refused with its error number; the session is usable."""

    errno: int
    message: str


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer: connection lost, killed, or silent for too long. What was asked may still happen."""

    message: str = "the connection to the server was lost"
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The statement returned more than the limit; its session is closed."""

    message: str


Effect: TypeAlias = Query | Batch | OnControl | Sleep
Result: TypeAlias = Ok | ServerError | Lost | TooLarge
Procedure: TypeAlias = Generator[Effect, Result, T]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a batch was answered: one result for each query, up to the first that is not `Ok`."""

    results: tuple[Result, ...]


def together(*queries: Query) -> Procedure[tuple[Result, ...]]:
    """Run a batch; its results."""
    answer: object = yield Batch(queries)  # the only effect that is not answered by one result
    assert isinstance(answer, Answers)
    if len(answer.results) < len(queries) and isinstance(answer.results[-1], Ok):
        return (*answer.results, Lost("the server's answers are not those to what it was asked"))
    return answer.results


def text(cell: Cell) -> str:
    """A cell of the agent's own queries as text: drivers hand out str or bytes."""
    if isinstance(cell, bytes):
        return cell.decode("latin-1")
    return "" if cell is None else str(cell)


def number(cell: Cell) -> int:
    """A cell of the agent's own queries as an integer; NULL is 0."""
    return 0 if cell is None else int(text(cell))
