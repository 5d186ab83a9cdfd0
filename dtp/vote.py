"""Vote: what a branch answers to PREPARE."""

from __future__ import annotations

from dtp.term import Term


class Vote(Term):
    """A branch's answer in phase 1.

    OK: prepared durably; the branch will do whatever is decided.
    READ_ONLY: it changed nothing, holds nothing and takes no part in phase 2.
    ROLLBACK: it has rolled back or certainly will.
    """

    OK = "OK"
    READ_ONLY = "READ_ONLY"
    ROLLBACK = "ROLLBACK"
