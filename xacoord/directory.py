"""Directory: which agent serves which participant, as far as we know. Pure.

Read with the first transaction, again where a participant is missing, and again with the
transaction after one whose agent did not answer (it may have moved).
"""

from __future__ import annotations

from collections.abc import Mapping


class Directory:
    """Participant -> address. The mapping is replaced, never changed: threads need no lock."""

    def __init__(self) -> None:
        self._addresses: Mapping[str, str] = {}
        self._stale = True

    @property
    def stale(self) -> bool:
        """True where the next Begin should ask for the addresses."""
        return self._stale

    def mark_stale(self) -> None:
        """Distrust what is known: an agent did not answer at its address."""
        self._stale = True

    def replace(self, addresses: Mapping[str, str]) -> None:
        """Take over what the coordinator said."""
        self._addresses = dict(addresses)
        self._stale = False

    def find(self, participant: str) -> str | None:
        """The address of the participant's agent, or None."""
        return self._addresses.get(participant)
