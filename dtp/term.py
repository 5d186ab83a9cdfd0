"""Term: the base of our enumerations.

Their members are keys of every table, many times in each transaction. Enum hashes a member by its name, in
Python; a member is one object, so its identity does.
"""

from __future__ import annotations

from enum import Enum


class Term(Enum):
    """An enumeration whose members are hashed by identity."""

    __hash__ = object.__hash__
