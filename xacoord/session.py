"""Session: what a TransactionManager shares with its transactions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dtp import Reason
from xacoord import flows
from xacoord.directory import Directory
from xacoord.errors import InvalidRequest

if TYPE_CHECKING:
    from xacoord.driver import Driver


@dataclass(frozen=True, slots=True)
class Session:
    """One coordinator, as one process sees it.

    Attributes:
        driver: performs flows.
        timeout_seconds: of transactions that name none; None: the server's default.
        grace_seconds: added to a transaction's time for answers to arrive, and how long an open
            outcome is asked for.
        directory: the agents' addresses.
    """

    driver: Driver
    timeout_seconds: float | None
    grace_seconds: float
    directory: Directory = field(default_factory=Directory)

    def agent_of(self, participant: str) -> str:
        """The address of the participant's agent; asks the coordinator where it is not known.

        Raises:
            InvalidRequest: UNKNOWN_PARTICIPANT: the coordinator does not know it either.
            Unavailable: the coordinator could not be asked.
        """
        address = self.directory.find(participant)
        if address is None:
            self.directory.replace(self.driver.drive(flows.read_directory(self.grace_seconds)))
            address = self.directory.find(participant)
        if address is None:
            raise InvalidRequest(
                Reason.UNKNOWN_PARTICIPANT,
                f"the coordinator has no address of participant {participant!r}: see `coordctl participants`",
            )
        return address
